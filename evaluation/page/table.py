"""The table for a paper or a README: every number with its interval, its floors and its protocol."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from datasets.report.page import count
from evaluation.catalogue import METRICS, metric_of
from system.whole_files import whole_file

from .kept import Evaluation, MetricValue, read_evaluation
from .numbers import decimals_of, direction, interval, number

TABLE_NAME = "table.md"


def write_table(eval_dir: str | Path) -> Path:
    """Write EVAL/table.md from EVAL/metrics.json; return its path."""
    path = Path(eval_dir) / TABLE_NAME
    with whole_file(path) as aside:
        aside.write_text(markdown_table(read_evaluation(eval_dir)), encoding="utf-8")
    return path


def meaning_of(name: str) -> str:
    """Return what a metric means, in a sentence; nothing of one that the catalogue does not know."""
    return metric_of(name).meaning if name.split("/")[0] in METRICS else ""


def markdown_table(evaluation: Evaluation) -> str:
    """Return table.md: numbers, then what each of them means and how it is computed."""
    floors, num_clips = list(evaluation.floors), len(evaluation.samples)
    rows = []
    for name, row in evaluation.metrics.items():
        decimals = decimals_of(row)
        of_floors = [number(evaluation.floors[floor].get(name), decimals) for floor in floors]
        ends = interval(row.low, row.high, decimals)
        words = row.unit, direction(row.higher_is_better)
        rows.append([f"`{name}`", number(row.value, decimals), ends, *words, *of_floors])
    parts = [markdown_rows(["metric", "value", "95 % interval", "unit", "", *floors], rows)]
    parts.append(f"{count(num_clips, 'clip')}; intervals are over clips.")
    parts.append(listed(f"`{row.name}`: {_words(row)}" for row in evaluation.metrics.values()))
    if evaluation.skipped:
        parts.append("Skipped:")
        parts.append(listed(f"`{name}`: {reason}" for name, reason in evaluation.skipped.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all but its first column stand on the right."""
    lines = [list(heads), ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def listed(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(sentence.split())}" for sentence in sentences)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _words(row: MetricValue) -> str:
    sentences = [text for text in (meaning_of(row.name), row.protocol) if text]
    return " ".join(text if text.endswith(".") else f"{text}." for text in sentences)
