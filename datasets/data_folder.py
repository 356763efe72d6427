"""What belongs to which video in a data folder, found by listing each of its folders once."""

import difflib
import functools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datasets.guidance.files import load_json
from datasets.guidance.kind import KINDS, GuidanceKind
from datasets.guidance.track import META_NAME, Track
from datasets.guidance.tracks import TYPE_FOLDERS, find_track, whole_suffixes
from datasets.packed_files import is_file
from system.errors import DataError

from .unread import FOLDER, HIDDEN, NO_ENDING, NO_TRACK, NO_VIDEO, Unread, is_hidden

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts",
                  ".wmv", ".flv", ".3gp", ".ogv")  # fmt: skip
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
VIDEO_FOLDER = "videos"
REFERENCE_FOLDER = "reference_images"
METADATA_FOLDER = "metadata"  # optional: what is known of a video beside its frames
# {guidance type: entry of the metadata that names the recipe of its files}
RECIPES = {"music": "music_features", "pose": "poses"}
NO_TYPE = "is not read: not of the layout, and not in --guidance_types"
NO_PART = "is not read: not of the layout"


@dataclass(frozen=True, slots=True)  # there may be a million
class Sample:
    """A video and the names of all that belongs to it; a dance's may be missing."""

    sample_id: str
    root: Path  # of the data folder
    video_names: tuple[str, ...]  # more than one is a fault
    reference_names: tuple[str, ...]  # any number but one is a fault
    guidance_names: dict[str, tuple[str, ...]]  # {type: entries of the type's folder}

    @property
    def video_paths(self) -> tuple[Path, ...]:
        return tuple(self.root / VIDEO_FOLDER / name for name in self.video_names)

    @property
    def reference_paths(self) -> tuple[Path, ...]:
        return tuple(self.root / REFERENCE_FOLDER / name for name in self.reference_names)

    def video_path(self) -> Path:
        return _the_only(self.video_paths, Path(), "video")

    def reference_path(self) -> Path:
        missing = self.root / REFERENCE_FOLDER / f"{self.sample_id}.jpg"
        return _the_only(self.reference_paths, missing, "reference image")


@dataclass(frozen=True)
class DataFolder:
    """A data folder's samples, sorted by id, and what can be told without opening a file."""

    root: Path
    samples: list[Sample]
    faults: list[DataError]  # of the folder as a whole
    unread: list[Unread]  # what lies there beside the samples
    needs_videos: bool = True  # False: samples are their guidance alone
    kinds: list[GuidanceKind] = field(default_factory=lambda: list(KINDS.values()))  # go to other processes

    @functools.cached_property
    def has_no_references(self) -> bool:
        """Whether the folder of reference images is missing or empty: a fault of the whole folder."""
        return str(self.root / REFERENCE_FOLDER) in {fault.path for fault in self.faults}

    def sample_faults(self, sample: Sample) -> list[DataError]:
        """Return what is missing of a sample, or there twice; not what a whole missing folder explains."""
        checks = [sample.video_path] if self.needs_videos else []
        if self.needs_videos and not self.has_no_references:
            checks.append(sample.reference_path)
        found = []
        for check in checks:
            try:
                check()
            except DataError as error:
                found.append(error)
        for type_name, names in sample.guidance_names.items():
            if not names:
                missing = type_dir(self.root, type_name) / sample.sample_id
                what = "video" if self.needs_videos else "sample"
                problem = f"no {type_name} for {what} {sample.sample_id!r}"
                others = "the video" if self.needs_videos else "what else there is of the sample"
                fix = f"put a file for each frame there, or remove {others}"
                found.append(DataError(missing, problem, fix))
        return found

    def track(self, sample: Sample, type_name: str, music_feature_fps: float | None = None) -> Track:
        fps = music_feature_fps if type_name == "music" else None
        folder = type_dir(sample.root, type_name)
        names = sample.guidance_names[type_name]
        return find_track(type_name, folder, sample.sample_id, names=names, fps=fps)


def type_dir(data_root: Path, type_name: str) -> Path:
    return data_root / TYPE_FOLDERS.get(type_name, type_name)


def read_metadata(data_root: Path, sample_id: str) -> dict:
    """Return what metadata/<sample_id>.json says of a video; {} where there is none.

    Known are beat_seconds (a list of times on the video's time line), notes (a list of sentences), source
    (the file that the video was made from), frame_rate (of frames at equal times), size ([height, width]),
    music_features ({"name": of the recipe, "channels": D}), poses ({"name": of the estimator,
    "key_points": K}), and of the reference image reference_frame (the video's frame that it is) or
    reference_pose (its key points [K, 3], 0..1 of it). Raises DataError.
    """
    path = data_root / METADATA_FOLDER / f"{sample_id}.json"
    if not is_file(path):
        return {}
    content, fix = load_json(path), "prepare the video again, or remove the file"
    if not isinstance(content, dict):
        raise DataError(path, "a JSON object expected", fix)
    for name, kind in (("beat_seconds", int | float), ("notes", str)):
        values = content.get(name, [])
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise DataError(path, f"{name} is not a list of {'texts' if kind is str else 'numbers'}", fix)
    points = content.get("reference_pose", [])
    if not isinstance(points, list) or not all(map(_is_point, points)):
        raise DataError(path, "reference_pose is not a list of [x, y, confidence]", fix)
    return content


def _is_point(values: object) -> bool:
    is_triple = isinstance(values, list) and len(values) == 3
    return is_triple and all(isinstance(value, int | float) for value in values)


def recorded_recipe(data_root: str | Path, sample_ids: Sequence[str], type_name: str = "music") -> str | None:
    """Return the name of the recipe that made a folder's music features, or poses; None: none is recorded.

    Raises DataError where two samples differ: their features do not mean the same.
    """
    entry = RECIPES[type_name]
    names: dict[str, str] = {}  # {recipe: its first sample}
    for sample_id in sample_ids:
        name = _recipe_name(read_metadata(Path(data_root), sample_id), entry)
        if name is not None:
            names.setdefault(name, sample_id)
    if len(names) > 1:
        (name, first), (other, second) = list(names.items())[:2]
        path = Path(data_root) / METADATA_FOLDER / f"{second}.json"
        problem = f"its {entry} are {other!r}, those of {first!r} are {name!r}"
        raise DataError(path, problem, f"extract the {entry.replace('_', ' ')} of all samples alike")
    return next(iter(names), None)


def _recipe_name(metadata: dict, entry: str) -> str | None:
    recipe = metadata.get(entry)
    if entry == "poses" and recipe is None:  # prepared before this entry was: the flag that was given
        settings = metadata.get("settings")
        recipe = {"name": settings.get("pose_estimator")} if isinstance(settings, dict) else None
    name = recipe.get("name") if isinstance(recipe, dict) else None
    return name if isinstance(name, str) else None


def list_data_folder(
    data_root: str | Path, guidance_types: Sequence[str], *, needs_videos: bool = True
) -> DataFolder:
    """Return the samples of a folder. Raises DataError without any; other missing folders are faults.

    needs_videos: False where guidance alone makes a sample; videos and reference images may then be missing.
    """
    root = Path(data_root)
    if not root.is_dir():
        problem = "is a file" if root.exists() else "no such data folder"
        first = VIDEO_FOLDER if needs_videos else TYPE_FOLDERS["music"]
        raise DataError(root, problem, f"give the folder that holds {first}/, poses/ and so on")
    lister = _FolderLister(root, guidance_types, needs_videos)
    videos = lister.entries_by_id(root / VIDEO_FOLDER, VIDEO_SUFFIXES)
    if lister.faults:
        raise lister.faults[0]
    references = lister.entries_by_id(root / REFERENCE_FOLDER, IMAGE_SUFFIXES)
    listings = {root / VIDEO_FOLDER: videos, root / REFERENCE_FOLDER: references}
    for name in guidance_types:
        folder = type_dir(root, name)
        listings[folder] = lister.entries_by_id(folder, whole_suffixes(), type_name=name)
    tracks = {name: listings[type_dir(root, name)] for name in guidance_types}
    present = {name: entries for name, entries in tracks.items() if entries}
    ids = videos.keys() if needs_videos else {one for entries in present.values() for one in entries}
    if not ids:
        raise lister.faults[0]
    samples = [
        Sample(
            sample_id,
            root,
            tuple(videos.get(sample_id, ())),
            tuple(references.get(sample_id, ())),
            {name: tuple(tracks.get(sample_id, ())) for name, tracks in present.items()},
        )
        for sample_id in sorted(ids)
    ]
    listings[root / METADATA_FOLDER] = lister.entries_by_id(root / METADATA_FOLDER, (".json",))
    strays = [
        Unread(folder / name, NO_VIDEO if needs_videos else NO_TRACK)
        for folder, entries in listings.items()
        for sample_id in sorted(entries.keys() - ids)
        for name in entries[sample_id]
    ]
    unread = strays + lister.unread + lister.beside()
    return DataFolder(root, samples, lister.faults, unread, needs_videos)


class _FolderLister:
    """Lists the folders of a data folder; collects what is wrong with one as a whole."""

    def __init__(self, root: Path, guidance_types: Sequence[str], needs_videos: bool) -> None:
        self.root, self.guidance_types, self.needs_videos = root, guidance_types, needs_videos
        self.optional = {METADATA_FOLDER} | (set() if needs_videos else {VIDEO_FOLDER, REFERENCE_FOLDER})
        self.expected = {VIDEO_FOLDER, REFERENCE_FOLDER, *(type_dir(root, n).name for n in guidance_types)}
        self.faults: list[DataError] = []
        self.unread: list[Unread] = []

    def beside(self) -> list[Unread]:
        """Return what lies in the root beside the folders that are read."""
        known = self.expected | {METADATA_FOLDER}
        return [
            Unread(path, HIDDEN if is_hidden(path.name) else NO_TYPE if path.is_dir() else NO_PART)
            for path in sorted(self.root.iterdir())
            if path.name not in known
        ]

    def entries_by_id(
        self, folder: Path, suffixes: tuple[str, ...], *, type_name: str | None = None
    ) -> dict[str, list[str]]:
        """Return {sample id: entry names}: files of these suffixes and, for a guidance type, sub-folders.

        Ids are composed (NFC): macOS decomposes Korean names, in some folders only.
        """
        if not folder.is_dir():
            if folder.name in self.optional:
                return {}
            self.faults.append(self._no_folder(folder, type_name))
            return {}
        found, unread, hidden = defaultdict(list), [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)
                if type_name and entry.name == META_NAME:
                    continue
                if is_hidden(entry.name):
                    hidden.append(Unread(folder / entry.name, HIDDEN))
                elif type_name is not None and entry.is_dir():
                    found[unicodedata.normalize("NFC", entry.name)].append(entry.name)
                elif suffix.lower() in suffixes:  # a folder called a.mp4 too: a fault, not to be passed over
                    found[unicodedata.normalize("NFC", stem)].append(entry.name)
                else:
                    unread.append(Unread(folder / entry.name, FOLDER if entry.is_dir() else NO_ENDING))
        self.unread += sorted(unread + hidden)
        if not found and folder.name not in self.optional:
            self.faults.append(_empty_folder(folder, suffixes, unread, type_name))
        for names in found.values():
            names.sort()
        return found

    def _no_folder(self, folder: Path, type_name: str | None) -> DataError:
        can_go = type_name is not None and len(self.guidance_types) > 1 and self.needs_videos
        fix = f"make it, or take {type_name} out of --guidance_types" if can_go else "make it"
        if folder.exists():
            return DataError(folder, "is a file, a folder was expected", f"move the file away and {fix}")
        near = self._nearly_named(folder.name, type_name)
        if near is not None:
            fix = f"if that is meant, rename it to {folder.name}/"
            return DataError(folder, f"no such folder, but there is {near}/", fix)
        deeper = sorted(path.parent for path in self.root.glob(f"*/{folder.name}") if path.is_dir())
        if deeper:
            return DataError(folder, f"no such folder, but {deeper[0]} has one", f"give {deeper[0]} instead")
        return DataError(folder, "no such folder", fix)

    def _nearly_named(self, wanted: str, type_name: str | None) -> str | None:
        """Return a folder that may be meant: pose/ or Poses/ for poses/."""
        names = [entry.name for entry in self.root.iterdir() if entry.is_dir()]
        candidates = {name.lower(): name for name in sorted(names) if name not in self.expected}
        close = [type_name] if type_name in candidates else []
        close += difflib.get_close_matches(wanted.lower(), candidates, n=1, cutoff=0.65)
        return candidates[close[0]] if close else None


def _empty_folder(
    folder: Path, suffixes: tuple[str, ...], unread: list[Unread], type_name: str | None
) -> DataError:
    wanted = " ".join(suffixes)
    content = f", only {unread[0].path.name} and the like" if unread else ""
    if type_name is not None:
        fix = f"put a folder of {type_name} files for each video there"
        return DataError(folder, f"no {type_name} in it{content}", fix)
    what = "videos" if folder.name == VIDEO_FOLDER else "images"
    return DataError(folder, f"no {what} in it{content}", f"put files there ({wanted})")


def _the_only(paths: tuple[Path, ...], missing: Path, what: str) -> Path:
    if not paths:
        problem = f"no {what} for video {missing.stem!r}"
        raise DataError(missing, problem, f"add it ({' '.join(IMAGE_SUFFIXES)})")
    if len(paths) > 1:
        problem = f"a second {what} of the same name as {paths[0].name}"
        raise DataError(paths[1], problem, "keep one")
    return paths[0]
