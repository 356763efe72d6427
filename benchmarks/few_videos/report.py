"""The tables of the runs: figures beside the model they start from, and the curves."""

from collections.abc import Sequence

import numpy as np

from evaluation.confidence import bootstrap_interval, paired_difference

METRICS = {"psnr": ".1f", "overlap": ".3f", "hand_psnr": ".1f", "face_psnr": ".1f"}
GROUPS = {"dancer": "the dancer, other songs", "others": "other dancers"}


def per_clip(results: Sequence[dict], group: str, metric: str) -> np.ndarray:
    """Return a metric of each clip [N], the mean over runs that differ in their seed alone."""
    return np.mean([[*result["figures"][group][metric].values()] for result in results], axis=0)


def reference_gap(results: Sequence[dict], group: str) -> tuple[float, float, float]:
    """Return (gap, low, high): a ratio of means, its interval as evaluation/guidance_gaps.py has it."""
    losses = np.mean([[*result["losses"][group].values()] for result in results], axis=0)
    true, other = losses.T
    ratio = other.mean() / true.mean()
    return ratio - 1, *bootstrap_interval(ratio - 1 + (other - ratio * true) / true.mean())


def row(name: str, results: Sequence[dict], base: dict, group: str) -> str:
    """Return a line of the figures' table: values, and paired differences from the start in brackets."""
    cells = []
    for metric, form in METRICS.items():
        values, before = per_clip(results, group, metric), per_clip([base], group, metric)
        found = paired_difference(values, before)
        change = f" ({found.mean:+{form}}, {found.low:+{form}} to {found.high:+{form}})"
        cells.append(f"{np.nanmean(values):{form}}{change if results[0] is not base else ''}")
    gap, low, high = reference_gap(results, group)
    cells.append(f"{gap:.1f} ({low:.1f} to {high:.1f})")
    return f"| {name} | {GROUPS[group]} | {' | '.join(cells)} | {results[0]['bytes'] / 1e6:.2f} |"


def spread(results: Sequence[dict], group: str, metric: str = "psnr") -> str:
    means = [np.nanmean(per_clip([result], group, metric)) for result in results]
    return " ".join(f"{mean:.2f}" for mean in means)


def lines(results: dict[str, dict]) -> list[str]:
    """Return all tables that these runs can give, as Markdown."""
    kinds = {}
    for name, result in results.items():
        kind, _, last = name.partition("_")
        kinds.setdefault(kind if last.isdigit() else name, []).append(result)
    found, base = [], results.get("none", {})
    measured = {kind: runs for kind, runs in kinds.items() if all("figures" in one for one in runs)}
    if "figures" in base:
        names = " | ".join(METRICS)
        found += [f"| run | clips | {names} | reference gap | MB |", "|" + "---|" * (4 + len(METRICS))]
        found += [row(kind, runs, base, group) for group in GROUPS for kind, runs in measured.items()]
        found += [f"{kind}, {group}: psnr of each seed {spread(runs, group)}"
                  for group in GROUPS for kind, runs in measured.items() if len(runs) > 1]  # fmt: skip
    return found + [line for kind in results for line in curve_lines(kind, results[kind]["curves"])]


def curve_lines(name: str, curves: dict[str, dict[str, float]]) -> list[str]:
    """Return a line per group of clips: its loss after each validation, in thousandths."""
    return [
        f"{name}, {group}: " + ", ".join(f"{step}: {1000 * loss:.1f}" for step, loss in points.items())
        for group, points in curves.items()
    ]
