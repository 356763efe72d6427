"""What an evaluation keeps: EVAL/clips/ID.json and .npz while it runs, EVAL/metrics.json at its end.

A clip's files are written whole, and are of one protocol: its digest is in them. A run that was killed goes
on with the clips that are not there; one with other settings, or of other videos, measures them again. So it
is with EVAL/guidance_gaps.json, for which a model is asked about all clips together.
"""

import hashlib
import json
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from datasets.report.page import count
from system.errors import RunError
from system.whole_files import whole_file

from .catalogue import METRICS, metric_of
from .confidence import bootstrap_interval, bootstrap_pairs
from .metrics import distributions
from .page.kept import CLIPS_FOLDER

GAPS_NAME = "guidance_gaps.json"
LEVEL = 0.95


@dataclass
class ClipResult:
    """What is known of a clip. Curves have one value per frame, or one less: of neighbouring frames.

    missing: {metric: why it has no value}. features: {"NETWORK/SIDE": [n, D]}, of the sides prediction, truth
    and each floor.
    """

    sample_id: str
    frame_rate: float
    num_frames: int
    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    floors: dict[str, dict[str, float]] = field(default_factory=dict)
    borders: list[int] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class SetMetric:
    """A metric of all clips together: its value, its interval, and its value on each floor."""

    value: float
    low: float = math.nan
    high: float = math.nan
    floors: dict[str, float] = field(default_factory=dict)


class ClipStore:
    """The finished clips of an evaluation folder, and its model's guidance gaps."""

    def __init__(self, eval_dir: Path) -> None:
        self.folder = Path(eval_dir) / CLIPS_FOLDER
        self.gaps_path = Path(eval_dir) / GAPS_NAME

    def find(self, sample_id: str, digest: str) -> ClipResult | None:
        """Return a finished clip of this digest, or None."""
        try:
            content = json.loads((self.folder / f"{sample_id}.json").read_text(encoding="utf-8"))
            if content.pop("digest") != digest:
                return None
            has_features = content.pop("has_features")
            result = ClipResult(**{name: _read(value) for name, value in content.items()})
            if has_features:
                with np.load(self.folder / f"{sample_id}.npz") as arrays:
                    result.features = dict(arrays)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return result

    def keep(self, result: ClipResult, digest: str) -> None:
        """Write a finished clip. Raises RunError where the disk does not take it."""
        content = {name: value for name, value in vars(result).items() if name != "features"}
        content |= {"digest": digest, "has_features": bool(result.features)}
        with written_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if result.features:
                with whole_file(self.folder / f"{result.sample_id}.npz") as aside, aside.open("wb") as file:
                    np.savez(file, **result.features)
            write_json(self.folder / f"{result.sample_id}.json", content)

    def find_gaps(self, digest: str) -> dict[str, SetMetric] | None:
        """Return the guidance gaps of this digest, or None."""
        try:
            content = json.loads(self.gaps_path.read_text(encoding="utf-8"))
            gaps = {name: SetMetric(**_read(row)) for name, row in content["gaps"].items()}
            return gaps if content["digest"] == digest else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep_gaps(self, gaps: Mapping[str, SetMetric], digest: str) -> None:
        """Write guidance gaps. Raises RunError where the disk does not take them."""
        with written_to(self.gaps_path.parent):
            write_json(
                self.gaps_path, {"digest": digest, "gaps": {name: vars(gap) for name, gap in gaps.items()}}
            )


@contextmanager
def written_to(folder: Path) -> Iterator[None]:
    """Raise RunError in place of the OSError of a full disk: no other clip would fare better."""
    try:
        yield
    except OSError as error:
        fix = "make room, then run the same command again, which goes on where it was"
        raise RunError(f"{folder}: cannot be written ({error.strerror or error}); {fix}") from error


def digest_of(protocol: Mapping | Sequence, paths: Iterable[Path]) -> str:
    """Return the digest of what decides a clip's numbers: the protocol, and the files by size and time.

    Of a folder all its files count: one that is written anew in its place leaves the folder's own time.
    """
    found = (path for given in paths for path in ([given, *given.rglob("*")] if given.is_dir() else [given]))
    stamps = ((str(path), path.stat()) for path in found if path.is_file())
    files = sorted((name, stamp.st_size, stamp.st_mtime_ns) for name, stamp in stamps)
    text = json.dumps([protocol, files], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def write_json(path: Path, content: Mapping) -> None:
    """Write a file as a whole; NaN is null, as JSON knows none."""
    text = json.dumps(_plain(content), indent=1, allow_nan=False, ensure_ascii=False)
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _plain(value):
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return round(value, 9) if isinstance(value, float) else value


def _read(value):
    """Return what JSON has, null in a list or dict as NaN."""
    if isinstance(value, dict):
        return {key: math.nan if item is None else _read(item) for key, item in value.items()}
    if isinstance(value, list):
        return [math.nan if item is None else _read(item) for item in value]
    return value


# ---- all clips together ----


def measure_sets(results: Sequence[ClipResult]) -> dict[str, SetMetric]:
    """Return the metrics of all clips together, from their features: {metric: value, interval, floors}."""
    works = {
        "cmmd": ("image_encoder", _of_pairs(distributions.cmmd_table)),
        "video_mmd": ("video_encoder", _of_pairs(distributions.polynomial_mmd_table)),
        "fid": ("inception", _frechet), "fvd": ("i3d", _frechet), "fid_vid": ("resnet3d", _frechet),
    }  # fmt: skip
    found = {}
    for name, (network, work) in works.items():
        value, low, high = _of_side(results, network, "prediction", work)
        if not math.isnan(value):
            floors = dict.fromkeys(floor for result in results for floor in result.floors)
            values = {floor: _of_side(results, network, floor, work)[0] for floor in floors}
            values = {floor: value for floor, value in values.items() if not math.isnan(value)}
            found[name] = SetMetric(value, low, high, values)
    return found


def _of_side(results: Sequence[ClipResult], network: str, side: str, work) -> tuple[float, float, float]:
    """Return (value, low, high) of one side's features against the truth's, NaN where they are not known."""
    keys = (f"{network}/{side}", f"{network}/truth")
    known = [result.features for result in results if all(key in result.features for key in keys)]
    return work(*([features[key] for features in known] for key in keys)) if known else (math.nan,) * 3


def _of_pairs(table_of: Callable) -> Callable:
    def work(first: list[np.ndarray], second: list[np.ndarray]) -> tuple[float, float, float]:
        table = table_of(first, second)
        return distributions.mean_of_pairs(table), *bootstrap_pairs(table, level=LEVEL)

    return work


def _frechet(first: list[np.ndarray], second: list[np.ndarray]) -> tuple[float, float, float]:
    """Return the distance, and no interval: it is biased by the number of samples, as resampling would be."""
    distance = distributions.frechet_distance(np.concatenate(first), np.concatenate(second))
    return distance, math.nan, math.nan


def summarize(
    results: Sequence[ClipResult],
    set_metrics: Mapping[str, SetMetric],
    wanted: Iterable[str] = METRICS,
    remarks: Mapping[str, str] = MappingProxyType({}),
) -> dict:
    """Return the parts of metrics.json but for its protocol.

    wanted: metrics that are to have a reason where they have no value; remarks: {metric: what else to say}.
    """
    metrics, floors = {}, {}
    for name in sorted({name for result in results for name in result.values}, key=_order):
        values = [result.values.get(name, math.nan) for result in results]
        low, high = bootstrap_interval(values, level=LEVEL)
        number = _count(values) + (_border_count(results) if name == "seam_ratio" else "")
        metrics[name] = _row(name, float(np.nanmean(values)), low, high, number)
        for floor, of_floor in _floor_means(name, results).items():
            floors.setdefault(floor, {})[name] = of_floor
    for name, found in set_metrics.items():
        metrics[name] = _row(name, found.value, found.low, found.high, "")
        for floor, value in found.floors.items():
            floors.setdefault(floor, {})[name] = value
    for name, remark in remarks.items():
        if name in metrics:
            metrics[name]["protocol"] += f"; {remark}"
    metrics = dict(sorted(metrics.items(), key=lambda item: _order(item[0])))
    samples = {result.sample_id: dict(result.values) for result in results}
    reasons, measured = _reasons(results), {metric_of(name).name for name in metrics}
    skipped = {name: reasons.get(name, METRICS[name].nothing) for name in wanted if name not in measured}
    return {"metrics": metrics, "floors": floors, "samples": samples, "skipped": skipped}


def missing_lines(results: Sequence[ClipResult], measured: Container[str]) -> list[str]:
    """Return a line for each clip that lacks metrics which others have, and why."""
    lines = []
    for result in results:
        names_of = {}
        for name, reason in result.missing.items():
            if name in measured:
                names_of.setdefault(reason, []).append(name)
        lines += [f"{result.sample_id}: no {', '.join(names)}: {why}" for why, names in names_of.items()]
    return lines


def _row(name: str, value: float, low: float, high: float, number: str) -> dict:
    metric = metric_of(name)
    return {
        "value": value, "low": low, "high": high, "unit": metric.unit,
        "higher_is_better": metric.higher_is_better, "protocol": metric.protocol + number,
    }  # fmt: skip


def _count(values: Sequence[float]) -> str:
    """Return words for how many clips have a value, where it is not all."""
    known = int(np.sum(~np.isnan(values)))
    return "" if known == len(values) else f"; {known} of {len(values)} clips have a value"


def _border_count(results: Sequence[ClipResult]) -> str:
    """Return words for at how many borders of windows the clips with a seam_ratio have it."""
    number = sum(len(result.borders) for result in results if "seam_ratio" in result.values)
    return f"; at {count(number, 'border')}"


def _floor_means(name: str, results: Sequence[ClipResult]) -> dict[str, float]:
    names = dict.fromkeys(floor for result in results for floor in result.floors)
    means = {}
    for floor in names:
        values = [result.floors.get(floor, {}).get(name, math.nan) for result in results]
        if not np.isnan(values).all():
            means[floor] = float(np.nanmean(values))
    return means


def _reasons(results: Sequence[ClipResult]) -> dict[str, str]:
    """Return {metric: the first clip's reason}, of those without a value in any clip."""
    found = {}
    for result in results:
        for name, reason in result.missing.items():
            found.setdefault(name, reason)
    return found


def _order(name: str) -> tuple[int, str]:
    names = list(METRICS)
    return names.index(metric_of(name).name), name
