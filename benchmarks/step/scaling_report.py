"""The scaling benchmark's results as a table and a plot."""

from pathlib import Path

NAMES = {
    "num_frames": "frames", "resolution": "resolution", "batch_size": "clips of a batch",
    "processes": "processes",
}  # fmt: skip


def table_lines(result: dict) -> list[str]:
    """Return a Markdown table, one line per point."""
    lines = [
        "| frames | resolution | batch | processes | step, s | step, CPU s | samples/s "
        "| memory, GiB | dry run, GiB |",
        "|" + "---|" * 9,
    ]
    for row in result["rows"]:
        if "error" not in row:
            figures = ("step_seconds", "step_cpu_seconds", "samples_per_second", "held_gb", "simulated_gb")
            shown = " | ".join(f"{row[figure]:.3g}" for figure in figures)
            point = " | ".join(str(row[name]) for name in NAMES)
            lines.append(f"| {point} | {shown} |")
    return lines


def series_rows(rows: list[dict], name: str) -> list[dict]:
    """Return the rows that differ from the common point, the first row, in nothing but `name`, in order."""
    others = [other for other in NAMES if other != name]
    base = rows[0]
    found = [row for row in rows if all(row[other] == base[other] for other in others) and "error" not in row]
    return sorted(found, key=lambda row: row[name])


def draw_plot(result: dict, path: Path) -> None:
    """Draw for each series the seconds of a step and its memory, measured and simulated."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [name for name in NAMES if len(series_rows(result["rows"], name)) > 1]
    figure, axes = pyplot.subplots(2, len(names), figsize=(2.9 * len(names), 4.6), squeeze=False)
    is_cpu = result["device"] == "cpu"
    figure_of_time = "step_cpu_seconds" if is_cpu else "step_seconds"
    for column, name in enumerate(names):
        rows = series_rows(result["rows"], name)
        values = [row[name] for row in rows]
        time_axis, memory_axis = axes[0][column], axes[1][column]
        time_axis.plot(values, [row[figure_of_time] for row in rows], "o-", color="tab:blue")
        memory_axis.plot(values, [row["held_gb"] for row in rows], "o-", color="tab:blue", label="measured")
        memory_axis.plot(
            values, [row["simulated_gb"] for row in rows], "x--", color="tab:orange", label="dry run"
        )
        memory_axis.set_xlabel(NAMES[name])
        for axis in (time_axis, memory_axis):
            axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
            axis.set_xticks(values)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("CPU seconds of a step" if is_cpu else "seconds of a step")
    axes[1][0].set_ylabel("memory, GiB")
    axes[1][0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
