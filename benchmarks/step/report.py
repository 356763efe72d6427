"""The training-step benchmark's results: ratios over repeats, a table to read, and a plot."""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.step.clock import PARTS

# {ratio: (figure, numerator, denominator)}; a row is named by its variant, the original's is "original".
RATIOS = {
    "cached_over_uncached_samples_per_second": ("samples_per_second", "cached", "uncached"),
    "cached_over_uncached_samples_per_cpu_second": ("samples_per_cpu_second", "cached", "uncached"),
    "cached_over_uncached_samples_per_second_with_data": (
        "samples_per_second_with_data", "cached", "uncached",
    ),
    "ours_over_champ_samples_per_second": ("samples_per_second", "cached", "original"),
    "ours_over_champ_samples_per_cpu_second": ("samples_per_cpu_second", "cached", "original"),
    "ours_over_champ_peak_memory": ("peak_memory_gb", "cached", "original"),
    "features_over_cached_samples_per_second": ("samples_per_second", "cached_features", "cached"),
    "features_over_cached_samples_per_cpu_second": ("samples_per_cpu_second", "cached_features", "cached"),
    "features_over_champ_samples_per_second": ("samples_per_second", "cached_features", "original"),
    "features_over_champ_samples_per_cpu_second": ("samples_per_cpu_second", "cached_features", "original"),
    "features_over_champ_peak_memory": ("peak_memory_gb", "cached_features", "original"),
    "uncached_over_champ_samples_per_second": ("samples_per_second", "uncached", "original"),
    "uncached_over_champ_samples_per_cpu_second": ("samples_per_cpu_second", "uncached", "original"),
    "uncached_over_champ_peak_memory": ("peak_memory_gb", "uncached", "original"),
    "checkpointing_over_champ_peak_memory": ("peak_memory_gb", "checkpointing", "original, checkpointing"),
}  # fmt: skip
FIGURES = ("samples_per_second", "samples_per_cpu_second", "peak_memory_gb")


def ratio_table(rows: list[dict], ratios: dict[str, tuple] = RATIOS) -> dict[str, dict[str, float]]:
    """Return {ratio: {"median", "lowest", "highest"}} of one stage, over the repeats that have both rows."""
    table = {}
    for name, (figure, above, below) in ratios.items():
        pairs = [
            numerator[figure] / denominator[figure]
            for numerator in _finished(rows, above)
            for denominator in _finished(rows, below)
            if numerator["repeat"] == denominator["repeat"] and numerator.get(figure)
        ]
        if pairs:
            table[name] = {
                "median": statistics.median(pairs), "lowest": min(pairs), "highest": max(pairs)
            }  # fmt: skip
    return table


def table_lines(result: dict) -> list[str]:
    """Return the medians of every variant (parts in CPU seconds) and the ratios, as Markdown tables."""
    lines = ["| stage | | samples/s | samples/CPU s | peak GB | " + " | ".join((*PARTS, "other")) + " |"]
    lines.append("|" + "---|" * (len(PARTS) + 6))
    for stage, variant, rows in by_variant(result["rows"]):
        figures = [shown_value(median(rows, figure)) for figure in FIGURES]
        seconds = [median_part(rows, "cpu_seconds", part) for part in (*PARTS, "other")]
        shown = [f"{value:.2f}" for value in seconds]
        lines.append(f"| {stage} | {variant} | " + " | ".join([*figures, *shown]) + " |")
    lines += ["", "| stage | ratio | median | lowest | highest |", "|---|---|---|---|---|"]
    for stage, table in result["ratios"].items():
        for name, ratio in table.items():
            shown = " | ".join(f"{ratio[key]:.2f}" for key in ("median", "lowest", "highest"))
            lines.append(f"| {stage} | {name} | {shown} |")
    for stage, variant, rows in by_variant(result["rows"]):
        if rows[0]["settings"].get("compile"):
            seconds = median(rows, "warmup_seconds")
            lines.append(f"{stage}, {variant}: {seconds:.0f} s for the warm-up step, which compiles")
        if (share := median(rows, "share_of_matrix_rate")) is not None:
            tflop, rate = median(rows, "step_tflop"), median(rows, "bf16_matrix_tflop_per_second")
            lines.append(
                f"{stage}, {variant}: {tflop:.0f} TFLOP per step, {share:.0%} of the card's bf16 matrix rate "
                f"({rate:.0f} TFLOP/s)"
            )
    return lines


def draw_plot(result: dict, path: Path, parts: Sequence[str] = PARTS, of: str = "a step") -> None:
    """Draw for each stage the seconds of a step's parts and the peak of memory, one bar per variant."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = list(by_variant(result["rows"]))
    stages = list(dict.fromkeys(stage for stage, _, _ in groups))
    figure, axes = pyplot.subplots(len(stages), 2, figsize=(11, 0.8 + 2.6 * len(stages)), squeeze=False)
    is_cpu = all(row["device"] == "cpu" for _, _, rows in groups for row in rows)
    kind = "cpu_seconds" if is_cpu else "seconds"
    for (time_axis, memory_axis), stage in zip(axes, stages, strict=True):
        bars = [(variant, rows) for name, variant, rows in groups if name == stage]
        names, begins = [variant for variant, _ in bars], [0.0] * len(bars)
        for part in (*parts, "other"):
            widths = [max(0.0, median_part(rows, kind, part)) for _, rows in bars]
            time_axis.barh(names, widths, left=begins, label=part.replace("_", " "))
            begins = [begin + width for begin, width in zip(begins, widths, strict=True)]
        memory_axis.barh(names, [median(rows, "peak_memory_gb") or 0.0 for _, rows in bars], color="0.5")
        time_axis.set_title(f"{stage}: {kind.replace('_', ' ')} of {of}", fontsize=10)
        memory_axis.set_title(f"{stage}: peak memory, GB", fontsize=10)
        for axis in (time_axis, memory_axis):
            axis.invert_yaxis()
            axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(labels), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _finished(rows: list[dict], variant: str) -> list[dict]:
    return [row for row in rows if row["variant"] == variant and "error" not in row]


def by_variant(rows: list[dict]) -> Iterator[tuple[str, str, list[dict]]]:
    """Yield (stage, variant, its finished rows), in the order in which they first ran."""
    for stage, variant in dict.fromkeys((row["stage"], row["variant"]) for row in rows):
        group = _finished([row for row in rows if row["stage"] == stage], variant)
        if group:
            yield stage, variant, group


def median(rows: list[dict], figure: str) -> float | None:
    values = [row[figure] for row in rows if row.get(figure) is not None]
    return statistics.median(values) if values else None


def median_part(rows: list[dict], kind: str, part: str) -> float:
    return statistics.median(row[kind][part] for row in rows)


def shown_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
