"""A clip's metrics over its frames, as lines under one time axis with the windows' borders and the beats."""

import json
from dataclasses import dataclass, field

import numpy as np

from datasets.report.images import thinned

from .kept import ClipCurves, MetricValue
from .numbers import decimals_of, number

MAX_OPEN = 4  # curves that are seen at once; the others are folded away
NUM_TICKS = 7
LEGACY = "_legacy"  # the same curve on another scale


@dataclass
class Curve:
    """One metric over the time axis, 0..1 from the first frame to the end of the last."""

    name: str
    unit: str
    line: np.ndarray  # float [n, 2]: place, value (NaN: nothing to say)
    lowest: str
    highest: str
    extreme: str  # "worst" or, of a metric of no direction, "highest"
    extreme_text: str
    extreme_frame: int
    extreme_seconds: float
    decimals: int

    @property
    def points(self) -> str:
        """The line as JSON, for the number beside a cursor; null where there is none."""
        pairs = [
            [round(float(place), 5), None if np.isnan(value) else round(float(value), self.decimals)]
            for place, value in self.line
        ]
        return json.dumps(pairs, separators=(",", ":"))


@dataclass
class Timeline:
    """All that lies under a clip's player; places in 0..1."""

    seconds: float
    frame_rate: float
    curves: list[Curve] = field(default_factory=list)
    borders: list[float] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)
    ticks: list[tuple[float, str]] = field(default_factory=list)


def make_timeline(clip: ClipCurves, metrics: dict[str, MetricValue], first: str = "") -> Timeline:
    """Return a clip's curves: the metric `first`, then as in `metrics`, then what is measured on the way."""
    order = [name for name in (first, *metrics, *clip.curves) if not name.endswith(LEGACY)]
    known = {name: clip.curves[name] for name in order if np.isfinite(clip.curves.get(name, ())).any()}
    curves = [
        make_curve(metrics.get(name, MetricValue(name, None)), values, clip) for name, values in known.items()
    ]
    beats = [beat / clip.seconds for beat in clip.beats if 0 <= beat <= clip.seconds]
    borders = [border / clip.num_frames for border in clip.borders if 0 < border < clip.num_frames]
    return Timeline(clip.seconds, clip.frame_rate, curves, borders, beats, _ticks(clip.seconds))


def make_curve(row: MetricValue, values: list[float], clip: ClipCurves) -> Curve:
    """Return a metric's curve; one of neighbouring frames is drawn at the second of each two."""
    values = np.asarray(values, float)
    values[~np.isfinite(values)] = np.nan
    frames = np.arange(len(values)) + clip.num_frames - len(values)
    worst = -1.0 if row.higher_is_better else 1.0  # what is thinned out is the better part
    line = np.stack([frames / clip.num_frames, worst * values], 1)
    line = thinned(line) * (1, worst)
    at = int(np.nanargmax(worst * values))
    decimals = decimals_of(MetricValue(row.name, float(np.nanmax(np.abs(values)))))
    low, high, extreme = (
        number(float(v), decimals) for v in (np.nanmin(values), np.nanmax(values), values[at])
    )
    word = "highest" if row.higher_is_better is None else "worst"
    seconds = float(frames[at] + 0.5) / clip.frame_rate  # in the middle, so that a player shows this frame
    return Curve(row.name, row.unit, line, low, high, word, extreme, int(frames[at]), seconds, decimals)


def _ticks(seconds: float) -> list[tuple[float, str]]:
    """Return (place, "2 s") at round times, the first at 0."""
    rough = seconds / NUM_TICKS
    power = 10 ** np.floor(np.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    times = np.arange(0, seconds * (1 - 0.4 / NUM_TICKS) + step * 1e-6, step)
    return [(float(time / seconds), f"{time:g} s") for time in times]
