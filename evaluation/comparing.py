"""--compare: evaluations over the same clips, clip by clip, and what may be said of one against another.

Clips differ far more than models do; held against itself, each clip shows a difference that two averages with
their intervals hide. What was not measured alike is an error, or is named and left out.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from system.errors import ConfigError, DataError
from system.whole_files import whole_file

from .catalogue import METRICS, NEEDS
from .confidence import FEWEST_CLIPS, Difference, bootstrap_interval, paired_difference
from .page.kept import Evaluation, MetricValue, read_evaluation
from .page.numbers import Strip, decimals_of, direction, interval, is_known, marks, number
from .page.report import REPORT_NAME, meanings_of, templates
from .page.table import markdown_rows
from .results import write_json

TABLE_NAME, COMPARISON_NAME = "table.md", "comparison.json"
MUST_AGREE = ("version", "clips")  # of the protocol: which frames are compared, and how
MAX_NAMED = 3  # clips in a note


@dataclass
class MetricComparison:
    """A metric in all evaluations. values: {evaluation: its own}; differences: {evaluation: from the first}."""

    row: MetricValue
    values: dict[str, MetricValue]
    differences: dict[str, Difference] = field(default_factory=dict)
    of_clips: dict[str, list[float]] = field(default_factory=dict)  # {evaluation: differences of its clips}

    def sentence(self, name: str) -> str:
        return self.differences[name].sentence(self.row.name, self.row.unit, self.row.higher_is_better)


@dataclass
class Comparison:
    """evaluations: {name: its folder}, the first is what the others are held against."""

    evaluations: dict[str, Path]
    clips: list[str]
    metrics: list[MetricComparison]
    notes: list[str]
    protocol: dict[str, dict[str, object]]  # {what differs: {evaluation: how it is}}

    @property
    def first(self) -> str:
        return next(iter(self.evaluations))

    @property
    def others(self) -> list[str]:
        return list(self.evaluations)[1:]

    def sentences(self) -> dict[str, list[str]]:
        """Return {evaluation: what may be said of it against the first}."""
        paired = [metric for metric in self.metrics if metric.differences]
        return {name: [metric.sentence(name) for metric in paired] for name in self.others}


def compare(eval_dirs: Sequence[str | Path], output_dir: str | Path) -> Comparison:
    """Compare evaluations and write comparison.json, table.md and report.html.

    Raises ConfigError for fewer than two folders, DataError where they cannot be held against one another.
    """
    folders = [Path(folder) for folder in eval_dirs]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise ConfigError("--compare: give two or more folders of finished evaluations, each of them once")
    if Path(output_dir).resolve() in {folder.resolve() for folder in folders}:
        raise ConfigError(f"--output_dir {output_dir}: is one of the evaluations; give another folder")
    names = short_names(folders)
    evaluations = {name: read_evaluation(folder) for name, folder in zip(names, folders, strict=True)}
    comparison = compare_evaluations(evaluations, dict(zip(names, folders, strict=True)))
    write(comparison, Path(output_dir))
    return comparison


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' last names, with as many parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def compare_evaluations(evaluations: Mapping[str, Evaluation], folders: dict[str, Path]) -> Comparison:
    """Return the comparison over the clips that all evaluations have. Raises DataError."""
    differing = differing_protocol(evaluations)
    check_protocol(differing, folders)
    clips, notes = common_clips(evaluations, folders)
    left_out = not_alike(evaluations, differing)
    notes += [f"{name} is left out: {reason}" for name, reason in left_out.items()]
    metrics = []
    for name in {name: None for one in evaluations.values() for name in one.metrics if name not in left_out}:
        missing = [other for other, one in evaluations.items() if name not in one.metrics]
        if missing:
            reasons = [evaluations[other].skipped.get(name, "") for other in missing]
            notes.append(f"{name} is left out: {missing[0]} does not have it" + (f" ({reasons[0]})" * bool(reasons[0])))
        elif (metric := compare_metric(name, evaluations, clips)) is not None:
            metrics.append(metric)
        else:
            notes.append(f"{name} is left out: it is of all clips together, and they are not the same")
    if not metrics:
        raise DataError(folders[names[0]] if (names := list(folders)) else "", "has no metric in common", "evaluate again")
    return Comparison(folders, clips, metrics, notes, differing)
