"""What an evaluation folder keeps, as the page, the table and a comparison read it.

EVAL/metrics.json has the numbers; EVAL/clips/ID.json what only a page shows of a clip: its curves over time.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from system.errors import DataError

METRICS_NAME, CLIPS_FOLDER = "metrics.json", "clips"


@dataclass
class MetricValue:
    """A row of "metrics". low and high: 95 % interval over clips; None where there is none."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    unit: str = ""
    higher_is_better: bool | None = None  # None: neither, as of a share that should be near 1
    protocol: str = ""


@dataclass
class Evaluation:
    """The content of metrics.json."""

    protocol: dict
    metrics: dict[str, MetricValue]
    floors: dict[str, dict[str, float | None]] = field(default_factory=dict)  # {floor: {metric: value}}
    samples: dict[str, dict[str, float | None]] = field(default_factory=dict)  # {clip: {metric: value}}
    skipped: dict[str, str] = field(default_factory=dict)  # {metric: reason}

    @classmethod
    def from_json(cls, content: Mapping) -> "Evaluation":
        fields = ("value", "low", "high", "unit", "higher_is_better", "protocol")
        metrics = {
            name: MetricValue(name, **{key: row[key] for key in fields if key in row})
            for name, row in content["metrics"].items()
        }
        others = {key: content.get(key) or {} for key in ("protocol", "floors", "samples", "skipped")}
        return cls(metrics=metrics, **others)


@dataclass
class ClipCurves:
    """The content of clips/ID.json that a page shows. Frames are those compared, the first at 0 seconds.

    A curve has one value per frame or, of neighbouring frames, one per frame but the first; NaN (null in the
    file) where a metric has nothing to say. borders: frames at which a window begins; beats: seconds.
    """

    sample_id: str
    frame_rate: float
    num_frames: int
    values: dict[str, float | None] = field(default_factory=dict)  # {metric: of the whole clip}
    curves: dict[str, list[float]] = field(default_factory=dict)  # {metric: over its frames}
    borders: list[int] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.num_frames / self.frame_rate

    @classmethod
    def from_json(cls, sample_id: str, content: Mapping) -> "ClipCurves":
        curves = {
            name: [math.nan if value is None else float(value) for value in curve]
            for name, curve in content.get("curves", {}).items()
        }
        num_frames = content.get("num_frames") or max(map(len, curves.values()), default=0)
        return cls(
            sample_id, float(content["frame_rate"]), num_frames, content.get("values") or {}, curves,
            content.get("borders") or [], content.get("beats") or [],
        )  # fmt: skip


def read_evaluation(eval_dir: str | Path) -> Evaluation:
    """Return what EVAL/metrics.json says. Raises DataError when it is not there or not readable."""
    path = Path(eval_dir) / METRICS_NAME
    if not path.is_file():
        problem = f"has no {METRICS_NAME}" if Path(eval_dir).is_dir() else "no such folder"
        raise DataError(eval_dir, problem, "give the --output_dir of a finished evaluate_guidance.py")
    return _read(path, Evaluation.from_json)


def read_clip(eval_dir: str | Path, sample_id: str) -> ClipCurves | None:
    """Return the curves of a clip, None where none are kept. Raises DataError when they are unreadable."""
    path = Path(eval_dir) / CLIPS_FOLDER / f"{sample_id}.json"
    return _read(path, lambda content: ClipCurves.from_json(sample_id, content)) if path.is_file() else None


def _read(path: Path, take):
    try:
        return take(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"is not what evaluate_guidance.py writes ({type(error).__name__}: {error})"
        raise DataError(path, problem, "remove the file and evaluate again") from error
