"""Numbers in words, and the chart's places: all that table and page show of a metric's value."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .kept import Evaluation, MetricValue

TRUTH = "truth_itself"
CEILINGS = ("vae_round_trip", TRUTH)  # beside the floors, the best that can be had
EDGE = 0.04  # of a chart's strip, free at both ends


def is_known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def decimals_of(row: MetricValue) -> int:
    """Return how many decimals a metric's numbers deserve: two digits of its interval, four without one."""
    if is_known(row.low) and is_known(row.high) and row.high > row.low:
        return _decimals((row.high - row.low) / 2, digits=2)
    return _decimals(row.value, digits=4) if is_known(row.value) else 2


def _decimals(value: float, *, digits: int) -> int:
    if not value:
        return 0
    return min(6, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def number(value: float | None, decimals: int) -> str:
    """Return a value in words; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if not text.strip("-0.") else text  # no "-0.00"


def interval(low: float | None, high: float | None, decimals: int) -> str:
    """Return "24.1 to 25.3", or nothing."""
    return f"{number(low, decimals)} to {number(high, decimals)}" if is_known(low) and is_known(high) else ""


def direction(higher_is_better: bool | None) -> str:
    return {True: "higher is better", False: "lower is better"}.get(higher_is_better, "")


@dataclass
class Mark:
    """A value on a strip. place: 0 left to 1 right; shape: number of its form and colour, 0 the result's."""

    name: str
    text: str
    place: float
    shape: int = 0
    low: float | None = None  # places of its interval's ends
    high: float | None = None


@dataclass
class Strip:
    """A row of the chart: values of one metric on a scale of its own, the better ones on the right."""

    row: MetricValue
    marks: list[Mark] = field(default_factory=list)
    verdicts: list[tuple[str, str]] = field(default_factory=list)  # (good, warning or error; in words)


def floor_strips(evaluation: Evaluation) -> list[Strip]:
    """Return a strip for each metric with a value: the evaluation's own, and its floors'."""
    strips = []
    for row in evaluation.metrics.values():
        if not is_known(row.value):
            continue
        floors = [(name, values.get(row.name)) for name, values in evaluation.floors.items()]
        bars = [(floor, value, None, None) for floor, value in floors]
        strip = Strip(row, marks(row, [("this evaluation", row.value, row.low, row.high), *bars]))
        strip.verdicts = [
            found
            for floor, value in real_floors(row, dict(floors)).items()
            if (found := _verdict(row, floor, value))
        ]
        strips.append(strip)
    return strips


def marks(row: MetricValue, bars: Sequence[tuple]) -> list[Mark]:
    """Return the marks of (name, value, low, high) on one scale; those without a value are left out.

    The shape is the place in `bars`, also where others are left out.
    """
    scale = _Scale((number for _, *numbers in bars for number in numbers), row.higher_is_better is False)
    decimals = decimals_of(row)
    found = []
    for shape, (name, value, low, high) in enumerate(bars):
        if is_known(value):
            ends = sorted(map(scale, (low, high))) if is_known(low) and is_known(high) else (None, None)
            found.append(Mark(name, number(value, decimals), scale(value), shape, *ends))
    return found


class _Scale:
    """A value -> its place in 0..1."""

    def __init__(self, values: Iterable[float | None], flipped: bool) -> None:
        known = [value for value in values if is_known(value)]
        low, high = min(known, default=0.0), max(known, default=0.0)
        middle, self.spread = (low + high) / 2, (high - low) or 1.0
        self.low, self.flipped = middle - self.spread / 2, flipped

    def __call__(self, value: float) -> float:
        place = (value - self.low) / self.spread
        return EDGE + (1 - 2 * EDGE) * (1 - place if self.flipped else place)


def real_floors(row: MetricValue, values: Mapping[str, float | None]) -> dict[str, float]:
    """Return the floors that a metric should be above.

    Where the truth itself has a value, a prediction as good as that needs no more, and what is better than
    the truth is no floor: a still image has no flicker.
    """
    known = {floor: value for floor, value in values.items() if is_known(value)}
    truth = known.get(TRUTH)
    if row.higher_is_better is None or (truth is not None and not _is_worse(row, row.value, truth)):
        return {}
    sign = 1 if row.higher_is_better else -1
    return {
        floor: value for floor, value in known.items()
        if floor not in CEILINGS and (truth is None or sign * value < sign * truth)
    }  # fmt: skip


def _is_worse(row: MetricValue, value: float, than: float) -> bool:
    """Return whether a metric's value is worse than another, which its interval does not hold."""
    if is_known(row.low) and is_known(row.high) and row.low <= than <= row.high:
        return False
    return value < than if row.higher_is_better else value > than


def _verdict(row: MetricValue, floor: str, value: float) -> tuple[str, str] | None:
    """Return what must be said of a metric against a floor; None where it is clearly better."""
    if is_known(row.low) and is_known(row.high) and row.low <= value <= row.high:
        return "warning", f"not told apart from {floor}"
    is_better = row.value > value if row.higher_is_better else row.value < value
    return None if is_better else ("error", f"no better than {floor}")
