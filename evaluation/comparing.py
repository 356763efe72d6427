"""--compare: evaluations over the same clips, clip by clip, and what may be said of one against another.

Clips differ far more than models do; held against itself, each clip shows a difference that two averages with
their intervals hide. What was not measured alike is an error, or is named and left out.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets.report.page import count
from system.errors import ConfigError, DataError

from .catalogue import METRICS, NEEDS
from .confidence import Difference, bootstrap_interval, paired_difference
from .page.kept import Evaluation, MetricValue, read_clip, read_evaluation

MUST_AGREE = ("version", "clips")  # of the protocol: which frames are compared, and how
MAX_NAMED = 3  # clips in a note
# In a metric's protocol, after what must agree.
COUNT = re.compile(r"(; \d+ of \d+ clips have a value)?(; at [\d,]+ borders?)?$")


@dataclass
class MetricComparison:
    """A metric in all evaluations.

    values: {evaluation: its own}; differences: {evaluation: its from the first's}.
    """

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


def compare(eval_dirs: Sequence[str | Path]) -> Comparison:
    """Return the comparison of finished evaluations with the first of them.

    Raises ConfigError for fewer than two folders, DataError where they cannot be held against one another.
    """
    folders = [Path(folder) for folder in eval_dirs]
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        raise ConfigError("--compare: give two or more folders of finished evaluations, each of them once")
    names = short_names(folders)
    evaluations = {name: read_evaluation(folder) for name, folder in zip(names, folders, strict=True)}
    return compare_evaluations(evaluations, dict(zip(names, folders, strict=True)))


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the folders' last names, with as many parents as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for num_parts in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-num_parts:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def compare_evaluations(evaluations: Mapping[str, Evaluation], folders: dict[str, Path]) -> Comparison:
    """Return the comparison over the clips that all evaluations have. Raises DataError."""
    differing = differing_protocol(evaluations)
    check_protocol(differing, folders)
    clips, notes = common_clips(evaluations, folders)
    notes += other_lengths(clips, folders)
    left_out = not_alike(evaluations, differing)
    metrics = []
    for name in dict.fromkeys(name for one in evaluations.values() for name in one.metrics):
        reason = left_out.get(name) or not_everywhere(name, evaluations)
        metric = None if reason else compare_metric(name, evaluations, clips)
        if metric is not None:
            metrics.append(metric)
        else:
            reason = reason or "it is of all clips together, and the evaluations have different clips"
            notes.append(f"{name} is left out: {reason}")
    if not metrics:
        problem = f"has no metric that {', '.join(list(folders)[1:])} has too, measured alike"
        raise DataError(next(iter(folders.values())), problem, "evaluate them again with the same flags")
    return Comparison(folders, clips, metrics, notes, differing)


# ---- what was measured alike ----


def differing_protocol(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, object]]:
    """Return {key of the protocol, as clips.fit: {evaluation: its value}} of what is not the same."""
    flat = {name: _flat(one.protocol) for name, one in evaluations.items()}
    keys = dict.fromkeys(key for protocol in flat.values() for key in protocol)
    found = {key: {name: protocol.get(key) for name, protocol in flat.items()} for key in keys}
    return {
        key: values for key, values in found.items()
        if any(value != other for value, other in itertools.pairwise(values.values()))
    }  # fmt: skip


def _flat(protocol: Mapping, prefix: str = "") -> dict[str, object]:
    found = {}
    for key, value in protocol.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def check_protocol(differing: Mapping[str, Mapping], folders: Mapping[str, Path]) -> None:
    """Raise DataError where evaluations did not compare the same frames in the same way."""
    for key, values in differing.items():
        if key.split(".")[0] not in MUST_AGREE:
            continue
        (first, value), *others = values.items()
        other, unlike = next((name, one) for name, one in others if one != value)
        setting = key.removeprefix("clips.")
        problem = f"was made with {setting} {_said(unlike)}, {first} with {_said(value)}"
        fix = "evaluate one of them again " + (
            "with this version" if key == "version" else f"with the same --{setting}"
        )
        raise DataError(folders[other], problem, fix)


def _said(value: object) -> str:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def common_clips(
    evaluations: Mapping[str, Evaluation], folders: Mapping[str, Path]
) -> tuple[list[str], list[str]]:
    """Return (the clips that all have, notes of those left out). Raises DataError where there are none."""
    shared = set.intersection(*(set(one.samples) for one in evaluations.values()))
    if not shared:
        (first, folder), *_ = folders.items()
        have = "; ".join(f"{name}: {_named(one.samples)}" for name, one in evaluations.items())
        raise DataError(
            folder, f"has no clip in common with the others ({have})", "evaluate the same --data_dir"
        )
    notes = [
        f"{name} has {count(len(more), 'clip')} that not all have, left out: {_named(more)}"
        for name, one in evaluations.items() if (more := set(one.samples) - shared)
    ]  # fmt: skip
    return sorted(shared), notes


def other_lengths(clips: Sequence[str], folders: Mapping[str, Path]) -> list[str]:
    """Return a note of each evaluation that compared more or fewer frames of a clip than the first did."""
    found, (first, *others) = {}, folders
    for clip in clips:
        kept = {name: read_clip(folder, clip) for name, folder in folders.items()}
        for name in others:
            lengths = [kept[one].num_frames for one in (name, first) if kept[one] is not None]
            if len(set(lengths)) > 1:
                found.setdefault(name, []).append(f"{clip} ({lengths[0]}, not {lengths[1]})")
    return [
        f"{name} has another number of frames than {first} in {count(len(those), 'clip')}, and so numbers "
        f"of other frames: {_named(those)}" for name, those in found.items()
    ]  # fmt: skip


def _named(clips) -> str:
    named = ", ".join(sorted(clips)[:MAX_NAMED]) or "no clips"
    return f"{named}, ..." if len(clips) > MAX_NAMED else named


def not_alike(evaluations: Mapping[str, Evaluation], differing: Mapping[str, Mapping]) -> dict[str, str]:
    """Return {metric: reason} of those measured by another formula, or with another network or judge."""
    found = {}
    for key in (key for key in differing if key.split(".")[0] in NEEDS):
        for name, metric in METRICS.items():
            if key.split(".")[0] in metric.needs:
                found.setdefault(name, f"{key} is not the same: " + "; ".join(
                    f"{one}: {_said(value)}" for one, value in differing[key].items()
                ))  # fmt: skip
    for name in dict.fromkeys(name for one in evaluations.values() for name in one.metrics):
        rows = [one.metrics[name] for one in evaluations.values() if name in one.metrics]
        protocols = {COUNT.sub("", row.protocol) for row in rows}
        if len(protocols) > 1:
            found[name] = "its protocol is not the same: " + " / ".join(sorted(protocols))
    return found


def not_everywhere(name: str, evaluations: Mapping[str, Evaluation]) -> str:
    """Return which evaluation lacks a metric and why, or nothing."""
    for other, one in evaluations.items():
        if name not in one.metrics:
            reason = one.skipped.get(name)
            return f"{other} does not have it" + (f" ({reason})" if reason else "")
    return ""


# ---- numbers ----


def compare_metric(
    name: str, evaluations: Mapping[str, Evaluation], clips: Sequence[str]
) -> MetricComparison | None:
    """Return a metric's values over these clips and its differences from the first evaluation.

    None of a metric of all clips together where an evaluation has other clips too.
    """
    first = next(iter(evaluations))
    of_clips = {
        other: [_value(one.samples[clip].get(name)) for clip in clips] for other, one in evaluations.items()
    }
    if all(math.isnan(value) for values in of_clips.values() for value in values):
        same = all(len(one.samples) == len(clips) for one in evaluations.values())
        values = {other: one.metrics[name] for other, one in evaluations.items()}
        return MetricComparison(values[first], values) if same else None
    values = {other: _over(evaluations[other].metrics[name], found) for other, found in of_clips.items()}
    found = MetricComparison(values[first], values)
    for other in list(evaluations)[1:]:
        found.differences[other] = paired_difference(of_clips[other], of_clips[first])
        pairs = zip(of_clips[other], of_clips[first], strict=True)
        found.of_clips[other] = [value - base for value, base in pairs]
    return found


def _value(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _over(row: MetricValue, values: Sequence[float]) -> MetricValue:
    """Return a metric's value and interval over some clips."""
    known = [value for value in values if not math.isnan(value)]
    mean = math.fsum(known) / len(known) if known else None
    return MetricValue(
        row.name, mean, *bootstrap_interval(known), row.unit, row.higher_is_better, row.protocol
    )
