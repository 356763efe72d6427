"""A clip from its name to its result: truth and prediction opened and measured, floors beside them."""

import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from datasets import DataError, write_video
from datasets.media.tags import generated_tags

from . import floors
from .clips.pairs import ClipPair, pair_with_video, paired
from .clips.sources import array_source
from .clips.truth import Truth, TruthFolder
from .guidance_gaps import as_scalars, interval_of
from .measuring import Measured, Tools, count_passes, measure
from .results import ClipResult, ClipStore, SetMetric, digest_of, written_to
from .sampling import Sampler, stated_borders

VIDEOS_FOLDER = "videos"


class Predictions(Protocol):
    """Where predictions come from."""

    def path(self, sample_id: str) -> Path:
        """Return the video of a prediction, once it is there."""

    def files(self, sample_id: str) -> list[Path]:
        """Return the files and folders that a prediction depends on."""

    def pair(self, truth: Truth) -> ClipPair:
        """Return a clip's prediction and its truth. Raises DataError."""

    def with_pose_of(self, other: Truth, pair: ClipPair) -> ClipPair | None:
        """Return the prediction that takes its pose from another clip; None where there is no model."""


class FinishedVideos(Predictions):
    """Finished videos, NAME.mp4 for each of the data. context: frames and overlap of their windows.

    Raises DataError where there are none.
    """

    def __init__(self, folder: Path, context: tuple[int | None, int | None] = (None, None)) -> None:
        self.folder, self.context = folder, context
        # Names are composed (NFC) as the data folder's: macOS decomposes Korean ones.
        self.paths = {unicodedata.normalize("NFC", path.stem): path for path in sorted(folder.glob("*.mp4"))}

        if not self.paths:
            problem = "is a file, a folder was expected" if folder.exists() else "no such folder"
            if folder.is_dir():
                names = sorted(entry.name for entry in folder.iterdir())
                found = f"only {names[0]} and the like" if names else "nothing at all"
                problem = f"no .mp4 in it, {found}"
            raise DataError(folder, problem, "give the folder of the finished videos, NAME.mp4 each")

    def check(self, truth: TruthFolder) -> None:
        """Raise DataError where none has the name of a true video."""
        if self.paths.keys().isdisjoint(truth.sample_ids):
            names = f"{min(self.paths)}.mp4, but {truth.sample_ids[0]}.mp4 expected"
            problem = f"none of its videos has the name of one of the data ({names})"
            raise DataError(self.folder, problem, "rename them, or give another --data_dir")

    def path(self, sample_id: str) -> Path:
        return self.paths.get(sample_id, self.folder / f"{sample_id}.mp4")

    def files(self, sample_id: str) -> list[Path]:
        return [self.path(sample_id)]

    def pair(self, truth: Truth) -> ClipPair:
        path = self.path(truth.sample_id)
        if path.with_suffix("").is_dir() and not path.exists():
            fix = f"make an mp4 of it, {path.name}, at the true video's frame rate"
            raise DataError(path.with_suffix(""), "is a folder, a video was expected", fix)
        if not path.exists():
            fix = f"put the prediction of {truth.video.path.name} there, or leave the clip out of --data_dir"
            raise DataError(path, "no such prediction", fix)
        return pair_with_video(truth, path, lambda num_frames: stated_borders(num_frames, *self.context))

    def with_pose_of(self, other: Truth, pair: ClipPair) -> ClipPair | None:
        return None


class SampledVideos(Predictions):
    """A model's predictions; they are written to a folder, and measured as they are before that."""

    def __init__(self, sampler: Sampler, folder: Path) -> None:
        self.sampler, self.folder = sampler, folder

    def path(self, sample_id: str) -> Path:
        return self.folder / f"{sample_id}.mp4"

    def files(self, sample_id: str) -> list[Path]:
        return [self.sampler.path, *map(Path, self.sampler.settings.lora)]

    def pair(self, truth: Truth) -> ClipPair:
        frames = self.sampler.sample(truth)
        sound = (truth.video.path, float(truth.seconds[0])) if truth.video.has_audio else ()
        path, tags = self.path(truth.sample_id), generated_tags("evaluate_guidance.py")
        with written_to(self.folder):
            try:
                write_video(path, frames, truth.seconds, *sound, tags=tags)
            except DataError:  # its sound is broken, or ends before the clip
                write_video(path, frames, truth.seconds, tags=tags)
        return paired(truth, array_source(frames), borders=self.sampler.borders(len(frames)))

    def with_pose_of(self, other: Truth, pair: ClipPair) -> ClipPair | None:
        if "pose" not in self.sampler.guidance_types or "pose" in other.lacks:
            return None
        poses = floors.wrapped(other.guidance["pose"], pair.num_frames)
        frames = self.sampler.sample(pair.clip, {**pair.clip.guidance, "pose": poses})
        return pair.with_prediction(array_source(frames))


@dataclass
class Evaluator:
    """What all clips of an evaluation share."""

    folder: TruthFolder
    predictions: Predictions
    tools: Tools
    wanted: Sequence[str]  # metrics
    floors: Sequence[str]
    round_trip: floors.RoundTrip | None = None

    def evaluate(self, sample_id: str, on_share: Callable[[float], None] = lambda share: None) -> ClipResult:
        """Return the result of a clip. on_share is told which share of its work is done since the last call.

        Raises DataError where the truth or the prediction cannot be read.
        """
        truth = self.folder.clip(sample_id)
        pair = self.predictions.pair(truth)
        passes = (1 + len(self.floors)) * count_passes(self.tools, self.wanted)
        share = 1 / passes / pair.num_frames

        def on_frames(count: int) -> None:
            on_share(count * share)

        measured = measure(pair, self.tools, self.wanted, on_frames)
        result = ClipResult(
            sample_id, pair.frame_rate, pair.num_frames, measured.values,
            {name: curve.tolist() for name, curve in measured.curves.items()},
            borders=list(pair.borders or ()), beats=measured.beats.tolist(),
            notes=[*truth.lacks.values(), *pair.notes], missing=measured.missing, features=measured.features,
        )  # fmt: skip
        other = self.another(sample_id) if self.needs_another else None
        for name in self.floors:
            try:
                found = self.floor(name, pair, measured, other, on_frames)
            except DataError as error:  # of the other clip
                result.notes.append(f"no floor {name}: {error}")
                continue
            result.floors[name] = found.values
            of_prediction = {key: rows for key, rows in found.features.items() if key.endswith("/prediction")}
            for key, rows in of_prediction.items():
                result.features[f"{key.split('/')[0]}/{name}"] = rows
        return result

    def floor(
        self, name: str, pair: ClipPair, measured: Measured, other: Truth | None, on_frames: Callable
    ) -> Measured:
        """Return what a floor gets, nothing where it cannot be had. Raises DataError of the other clip."""
        if name == "another_pose":
            floor = other and self.predictions.with_pose_of(other, pair)
            if other is not None and floor is None:
                return Measured(values=floors.pose_of_another(measured, other, self.wanted))
        elif name == "another_video":
            floor = other and floors.another_video(pair, other, self.folder.settings.fit)
        elif name == "reference_repeated":
            floor = floors.reference_repeated(pair, self.folder.settings.fit)
        elif name == "vae_round_trip":
            floor = self.round_trip and floors.vae_round_trip(pair, self.round_trip)
        else:
            floor = floors.truth_itself(pair, self.folder.with_own_pose(pair.clip))
        if floor is None:
            return Measured()
        of_truth = {key: rows for key, rows in measured.features.items() if key.endswith("/truth")}
        return measure(floor, self.tools, floors.wanted_of(name, self.wanted), on_frames, of_truth)

    def seen(self, sample_id: str) -> ClipPair:
        """Return a finished clip again, its prediction from the video that there is. Raises DataError."""
        return pair_with_video(self.folder.clip(sample_id), self.predictions.path(sample_id))

    @property
    def needs_another(self) -> bool:
        return not {"another_pose", "another_video"}.isdisjoint(self.floors)

    def files(self, sample_id: str) -> list[Path]:
        """Return the files and folders that a clip's numbers depend on, the next clip's too."""
        ids = [sample_id, *self.others(sample_id)[: int(self.needs_another)]]
        return [*self.predictions.files(sample_id), *(path for one in ids for path in self.folder.files(one))]

    def others(self, sample_id: str) -> list[str]:
        """Return the names of the other clips of the folder, the next one first."""
        ids = self.folder.sample_ids
        place = ids.index(sample_id)
        return [*ids[place + 1 :], *ids[:place]]

    def another(self, sample_id: str) -> Truth | None:
        """Return the next clip of the folder that can be read, None where there is none."""
        for other in self.others(sample_id):
            try:
                return self.folder.clip(other)
            except DataError:  # it is told of when its turn comes
                continue
        return None


@dataclass
class Work:
    """The clips of an evaluation, by name: measured once, kept, found again."""

    evaluator: Evaluator
    protocol: dict
    store: ClipStore
    digests: dict[str, str] = field(default_factory=dict)

    def digest(self, sample_id: str) -> str:
        """Return the digest of what decides a clip's numbers, as it was when this was first asked."""
        if sample_id not in self.digests:
            evaluator = self.evaluator
            # A model's noise is drawn from the clip's place.
            place = evaluator.folder.sample_ids.index(sample_id) if self.protocol.get("sampling") else 0
            self.digests[sample_id] = digest_of([self.protocol, place], evaluator.files(sample_id))
        return self.digests[sample_id]

    def run(self, sample_ids: Sequence[str], *, shows_progress: bool) -> dict[str, str]:
        """Measure and keep the clips that are not kept yet; return {clip: its fault}."""
        faults = {}
        todo = [name for name in sample_ids if self.store.find(name, self.digest(name)) is None]
        if shows_progress and len(todo) < len(sample_ids):
            say(f"{len(sample_ids) - len(todo)} of {len(sample_ids)} clips are done already")
        with progress_bar(len(todo), disable=not shows_progress or not todo) as bar:
            for number, name in enumerate(todo, start=1):
                try:
                    result = self.evaluator.evaluate(name, lambda share, end=number: grow(bar, share, end))
                    self.store.keep(result, self.digest(name))
                except DataError as fault:
                    faults[name] = str(fault)
                    say(f"error: {fault}")
                    continue
                finally:
                    bar.update(number - bar.n)
                for note in result.notes:
                    say(f"note: {note}")
        return faults

    def results(self, sample_ids: Sequence[str]) -> list[ClipResult]:
        """Return the results that are kept, in the order of names."""
        found = (self.store.find(name, self.digest(name)) for name in sample_ids)
        return [result for result in found if result is not None]

    def gaps(self, results: Sequence[ClipResult], make_objective: Callable) -> dict[str, SetMetric]:
        """Return guidance_gap/TYPE and guidance_gap_alone/TYPE of a model; nothing of finished videos.

        Measured once and kept, as clips are. make_objective: the schedule of a model's noise to the objective
        of its training.
        """
        sampler = getattr(self.evaluator.predictions, "sampler", None)
        if sampler is None or "guidance_gap" not in self.evaluator.wanted:
            return {}
        digest = digest_of([self.digest(result.sample_id) for result in results], [])
        gaps = self.store.find_gaps(digest)
        if gaps is None:
            gaps = self.measure_gaps(sampler, results, make_objective)
            self.store.keep_gaps(gaps, digest)
        return gaps

    def measure_gaps(
        self, sampler: Sampler, results: Sequence[ClipResult], make_objective: Callable
    ) -> dict[str, SetMetric]:
        clips = (self.evaluator.folder.clip(result.sample_id) for result in results)
        shortest = min(result.num_frames for result in results)  # each clip gets another one's guidance
        objective = make_objective(sampler.pipeline.scheduler)
        with progress_bar(len(results), disable=False, desc="guidance gaps: ") as bar:
            rows = sampler.losses(clips, objective, shortest, bar.update)
        gaps = {name: value for name, value in as_scalars(rows).items() if name.startswith("guidance_gap")}
        return {name: SetMetric(value, *interval_of(rows, name)) for name, value in gaps.items()}


def progress_bar(num_clips: int, *, disable: bool, desc: str = "") -> tqdm:
    return tqdm(
        total=num_clips, disable=disable, desc=desc, smoothing=0.02,
        mininterval=0.2 if sys.stderr.isatty() else 10,
        bar_format="{desc}{percentage:3.0f}%|{bar}| {n:.1f} of {total} clips, {elapsed}<{remaining}",
    )  # fmt: skip


def grow(bar: tqdm, share: float, end: float) -> None:
    """Add a share of a clip to the bar; sums of shares may pass a clip's end by a rounding."""
    bar.update(min(share, end - bar.n))


def say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
