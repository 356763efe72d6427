"""The table for a paper or a README: every number with its interval, its floors and its protocol."""

from collections.abc import Mapping, Sequence

from .kept import Evaluation
from .numbers import decimals_of, direction, interval, number


def markdown_table(evaluation: Evaluation, meanings: Mapping[str, str] | None = None) -> str:
    """Return table.md. meanings: {metric: a sentence}, listed below the table."""
    floors, num_clips = list(evaluation.floors), len(evaluation.samples)
    heads = ["metric", "value", "95 % interval", "unit", "", *floors]
    rows = []
    for name, row in evaluation.metrics.items():
        decimals = decimals_of(row)
        values = [number(evaluation.floors[floor].get(name), decimals) for floor in floors]
        ends = interval(row.low, row.high, decimals)
        rows.append(
            [f"`{name}`", number(row.value, decimals), ends, row.unit, direction(row.higher_is_better)]
        )
        rows[-1] += values
    parts = [markdown_rows(heads, rows)]
    parts.append(f"{num_clips} clip{'s' * (num_clips != 1)}; intervals are over clips." if num_clips else "")
    parts.append(_listed({name: _words(evaluation, name, meanings or {}) for name in evaluation.metrics}))
    if evaluation.skipped:
        parts.append("Not measured:\n\n" + _listed(evaluation.skipped))
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; numbers stand on the right."""
    lines = [list(heads), ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _listed(sentences: Mapping[str, str]) -> str:
    return "\n".join(f"- `{name}`: {' '.join(text.split())}" for name, text in sentences.items() if text)


def _words(evaluation: Evaluation, name: str, meanings: Mapping[str, str]) -> str:
    sentences = (meanings.get(name, ""), evaluation.metrics[name].protocol)
    return " ".join(text if text.endswith((".", "!")) else f"{text}." for text in sentences if text)
