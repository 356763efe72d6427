"""The sampling benchmark's results: ratios over repeats, and tables to read."""

from benchmarks.sample.parts import PARTS
from benchmarks.step.report import by_variant, median, median_part, shown_value

# {ratio: (figure, numerator, denominator)} of one case's rows, see benchmarks.step.report.ratio_table.
RATIOS = {
    "ours_over_bare_cpu_seconds": ("step_cpu_seconds", "ours", "bare"),
    "original_over_ours_cpu_seconds": ("step_cpu_seconds", "original", "ours"),
    "original_over_ours_forwards": ("forwards", "original", "ours"),
    "original_over_ours_cpu_seconds_per_forward": ("forward_cpu_seconds", "original", "ours"),
    "ours_over_original_peak_memory": ("peak_memory_gb", "ours", "original"),
    "ours_over_original_held_memory": ("held_gb", "ours", "original"),
    "original_over_recommended_cpu_seconds": ("full_cpu_seconds", "original", "recommended"),
    "ours_over_recommended_cpu_seconds": ("full_cpu_seconds", "ours", "recommended"),
}
FIGURES = {
    "step_cpu_seconds": "CPU s", "full_cpu_seconds": "CPU s of a full sample", "step_seconds": "s",
    "forwards": "forwards", "frames_denoised": "their frames", "forward_cpu_seconds": "CPU s per forward",
    "peak_memory_gb": "peak, GiB", "held_gb": "less packages",
}  # fmt: skip


def add_figures(row: dict, full_steps: int) -> dict:
    """Return a row with its memory beyond Python and its packages, and the time of a full sample.

    That of settings with fewer steps is their own; the others' follows from the time of their UNet per step.
    """
    if "error" in row:
        return row
    seconds, steps = row["step_cpu_seconds"], row["num_inference_steps"]
    if row["variant"] != "recommended":
        seconds += (full_steps - steps) * row["cpu_seconds"]["denoiser"] / steps
    held_gb = row["peak_memory_gb"] - row.get("packages_gb", 0.0)
    return row | {"full_cpu_seconds": seconds, "held_gb": held_gb}


def table_lines(result: dict) -> list[str]:
    """Return the medians of every row (parts in CPU seconds) and the ratios, as Markdown tables."""
    columns = (*FIGURES.values(), *(part.replace("_", " ") for part in PARTS), "other")
    lines = [f"| | | setting | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 3)]
    for case, variant, rows in by_variant(result["rows"]):
        shown = [shown_value(median(rows, figure)) for figure in FIGURES]
        shown += [f"{median_part(rows, 'cpu_seconds', part):.2f}" for part in (*PARTS, "other")]
        lines.append(f"| {case} | {variant} | {rows[0]['setting']} | {' | '.join(shown)} |")
    lines += ["", "| | ratio | median | lowest | highest |", "|---|---|---|---|---|"]
    for case, table in result["ratios"].items():
        for name, ratio in table.items():
            shown = " | ".join(f"{ratio[key]:.2f}" for key in ("median", "lowest", "highest"))
            lines.append(f"| {case} | {name} | {shown} |")
    return lines
