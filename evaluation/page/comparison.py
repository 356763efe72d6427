"""A comparison to look at: comparison.json, the table, and the page with every difference in a sentence."""

import math
from dataclasses import dataclass
from pathlib import Path

from datasets.report.page import count
from evaluation.comparing import Comparison, MetricComparison
from evaluation.confidence import FEWEST_CLIPS
from evaluation.results import write_json
from system.errors import ConfigError
from system.whole_files import whole_file

from .numbers import Strip, decimals_of, direction, interval, is_known, marks, number
from .report import REPORT_NAME, templates
from .table import TABLE_NAME, listed, markdown_rows, meaning_of

COMPARISON_NAME = "comparison.json"


def write_comparison(comparison: Comparison, output_dir: str | Path) -> Path:
    """Write comparison.json, table.md and report.html; return the last one's path.

    Raises ConfigError where the folder cannot be made, or is one of the evaluations.
    """
    output_dir = Path(output_dir)
    if output_dir.resolve() in {folder.resolve() for folder in comparison.evaluations.values()}:
        raise ConfigError(f"--output_dir {output_dir}: is one of the evaluations; give another folder")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output_dir {output_dir}: cannot be made ({error.strerror}); give another"
        ) from None
    write_json(output_dir / COMPARISON_NAME, as_json(comparison))
    pages = {TABLE_NAME: markdown(comparison), REPORT_NAME: html(comparison)}
    for name, text in pages.items():
        with whole_file(output_dir / name) as aside:
            aside.write_text(text, encoding="utf-8")
    return output_dir / REPORT_NAME


def as_json(comparison: Comparison) -> dict:
    metrics = {}
    for metric in comparison.metrics:
        row = metric.row
        values = {
            name: {"value": one.value, "low": one.low, "high": one.high}
            for name, one in metric.values.items()
        }
        differences = {
            name: {**vars(difference), "sentence": metric.sentence(name)}
            for name, difference in metric.differences.items()
        }
        metrics[row.name] = {
            "unit": row.unit, "higher_is_better": row.higher_is_better, "protocol": row.protocol,
            "values": values, "differences": differences,
        }  # fmt: skip
    evaluations = {name: str(folder) for name, folder in comparison.evaluations.items()}
    return {
        "evaluations": evaluations, "against": comparison.first, "clips": comparison.clips,
        "metrics": metrics, "protocol": comparison.protocol, "notes": comparison.notes,
    }  # fmt: skip


def markdown(comparison: Comparison) -> str:
    """Return table.md: values with their intervals, then the differences in words."""
    names, rows = list(comparison.evaluations), []
    for metric in comparison.metrics:
        values = [value_words(metric, name) for name in names]
        rows.append(
            [f"`{metric.row.name}`", metric.row.unit, direction(metric.row.higher_is_better), *values]
        )
    num_clips = count(len(comparison.clips), "clip")
    parts = [markdown_rows(["metric", "unit", "", *names], rows)]
    parts.append(f"Means over {num_clips} with 95 % intervals over clips.")
    for name, sentences in comparison.sentences().items():
        parts += [f"`{name}` against `{comparison.first}`:", listed(sentences)]
    parts.append(chance(comparison))
    parts += ["Notes:", listed(comparison.notes)] if comparison.notes else []
    return "\n\n".join(part for part in parts if part) + "\n"


def value_words(metric: MetricComparison, name: str) -> str:
    """Return "24.1 (23.5 to 24.8)"."""
    decimals, one = max(decimals_of(row) for row in metric.values.values()), metric.values[name]
    ends = interval(one.low, one.high, decimals)
    return number(one.value, decimals) + (f" ({ends})" if ends else "")


def chance(comparison: Comparison) -> str:
    """Return what to think of many comparisons at once, and of few clips."""
    num_sentences = sum(len(metric.differences) for metric in comparison.metrics)
    num_clips, words = count(len(comparison.clips), "clip"), []
    if len(comparison.clips) < FEWEST_CLIPS:
        words.append(f"{num_clips}: {FEWEST_CLIPS} or more are needed to tell anything apart.")
    if num_sentences >= 10:
        words.append(f"One in 20 sentences finds a difference by chance alone; here are {num_sentences}.")
    return " ".join(words)


# ---- the page ----


@dataclass
class DifferenceStrip:
    """One evaluation's difference from the first in one metric; places 0..1, better on the right."""

    name: str
    kind: str  # good, error or soft
    sentence: str
    zero: float
    mean: float
    low: float | None
    high: float | None
    clips: list[float]


def html(comparison: Comparison) -> str:
    """Return report.html."""
    values = [(metric, value_strip(metric)) for metric in comparison.metrics]
    differences = [
        (metric.row, [difference_strip(metric, name) for name in metric.differences])
        for metric in comparison.metrics if metric.differences
    ]  # fmt: skip
    return templates().get_template("comparison.html").render(
        comparison=comparison, values=values, differences=differences, chance=chance(comparison),
        meanings={metric.row.name: meaning_of(metric.row.name) for metric in comparison.metrics},
        value_words=value_words,
    )  # fmt: skip


def value_strip(metric: MetricComparison) -> Strip:
    bars = [(name, one.value, one.low, one.high) for name, one in metric.values.items()]
    return Strip(metric.row, marks(metric.row, bars))


def difference_strip(metric: MetricComparison, name: str) -> DifferenceStrip | None:
    """Return the strip of a difference; None where no clip has a value in both."""
    found, flipped = metric.differences[name], metric.row.higher_is_better is False
    if not found.num_clips:
        return None
    clips = [value for value in metric.of_clips[name] if not math.isnan(value)]
    reach = max(map(abs, (*clips, *(end for end in (found.low, found.high) if is_known(end))))) or 1.0

    def place(value: float) -> float:
        return 0.5 + (-0.46 if flipped else 0.46) * value / reach

    sentence = metric.sentence(name)
    kind = "good" if ": better" in sentence else "error" if ": worse" in sentence else "soft"
    ends = sorted(map(place, (found.low, found.high))) if is_known(found.low) else (None, None)
    return DifferenceStrip(
        name, kind, sentence, 0.5, place(found.mean), *ends, [place(value) for value in clips]
    )
