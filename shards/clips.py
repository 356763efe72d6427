"""Clips out of shards: GuidanceDataset over files that lie in them."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from datasets.checking.kept_facts import unpack_moments, unpack_table
from datasets.checking.looks import own_kinds
from datasets.checking.sample_check import CheckSettings
from datasets.data_folder import REFERENCE_FOLDER, VIDEO_FOLDER, DataFolder, Sample, type_dir
from datasets.feature_statistics import Moments, mean_and_deviation
from datasets.guidance.track import META_NAME
from datasets.guidance_dataset import GuidanceDataset
from datasets.media.video import FrameTable
from datasets.packed_files import mount
from system.errors import DataError

from .cache import ShardCache
from .fetching import Store, is_address
from .index import PACK_AGAIN, IndexedFiles, ShardIndex, read_about
from .layout import INDEX_NAME, key_of, shard_name
from .read_ahead import InShards
from .store import LocalShards


def has_shards(data_root: str | Path) -> bool:
    """Return whether data is of shards: an address, or a folder with an index or, without it, a shard."""
    return is_address(data_root) or any(
        Path(data_root, name).is_file() for name in (INDEX_NAME, shard_name(0))
    )


@dataclass(frozen=True)
class ShardSettings:
    """Where it is noted which shards have been digested, and what is kept here of those elsewhere."""

    notes_dir: Path | None = None
    cache_dir: Path | None = None  # None: shards in a folder of this machine are read where they are
    cache_bytes: int = 64 * 2**30


def open_shards(
    data_root: str | Path, settings: ShardSettings
) -> tuple[ShardIndex, LocalShards | ShardCache]:
    """Return the index of shards, and where they lie. Raises UserError, RunError."""
    path, store = _place_of(data_root, settings)
    index = ShardIndex(path)
    if isinstance(store, ShardCache):
        store.check_room(index.shards)
    return index, store


def about_shards(data_root: str | Path, settings: ShardSettings) -> dict:
    """Return what an index says of all its samples, which are not read. Raises UserError, RunError."""
    return read_about(_place_of(data_root, settings)[0])


def _place_of(data_root: str | Path, settings: ShardSettings) -> tuple[Path, LocalShards | ShardCache]:
    """Return the path of an index, and where its shards lie."""
    if settings.cache_dir is None:
        return Path(data_root, INDEX_NAME), LocalShards(Path(data_root), settings.notes_dir)
    address = str(data_root) if is_address(data_root) else f"file://{os.path.abspath(data_root)}"
    cache = ShardCache(Store(address), settings.cache_dir, settings.cache_bytes)
    return cache.index_path(), cache


class ShardClips(InShards, GuidanceDataset):
    """The clips that GuidanceDataset gives of the data folder that was packed, bit for bit."""

    def __init__(
        self, data_root: str | Path, *arguments, shards: ShardSettings | None = None, **keywords
    ) -> None:
        self.index, self.store = open_shards(data_root, shards or ShardSettings())
        self.files = IndexedFiles(self.index, self.store)
        mount(Path(data_root), self.files)
        super().__init__(data_root, *arguments, kept=_IndexedFacts(self.index), **keywords)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        mount(self.data_root, self.files)  # in a worker that was not forked

    def _listed(
        self, settings: CheckSettings, skip_invalid: bool, left_out: Sequence[tuple[str, str]] | None
    ) -> tuple[DataFolder, Sequence[Sample], list[tuple[str, str]]]:
        if "latents" in self.index.about:
            fix = "give the data folder, or shards packed without --from_cache"
            raise DataError(self.index.path, "has latents of videos, and the videos are needed", fix)
        check_verdict(self.index, settings)
        samples = IndexedSamples(self.index, self.data_root, list(settings.channels))
        may_skip = skip_invalid or left_out is not None
        samples.numbers, gone = long_enough(self.index, settings.clip_span, skip_invalid=may_skip)
        return DataFolder(self.data_root, samples, [], []), samples, gone

    @property
    def sample_ids(self) -> Sequence[str]:
        return self._samples.names

    def num_frames(self, index: int) -> int:
        return int(self.index.num_frames[self._samples.numbers[index]])

    def source_files(self, index: int) -> dict[str, tuple[list[Path], str]]:
        """Return what GuidanceDataset returns; of the files, the digest of all of them that the index has."""
        sample = self._samples[index]
        sha256 = self.index.row(int(self._samples.numbers[index])).sha256
        stated = {f"guidance/{name}": self._track(sample, name).stated for name in self.channels}
        return {name: ([], sha256 + words) for name, words in {"video": "", **stated}.items()}

    @property
    def numbers(self) -> np.ndarray:
        return self._samples.numbers

    def recipe(self, type_name: str) -> str | None:
        return self.index.about["recipes"].get(type_name)

    def feature_statistics(self, indices: Sequence[int] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what GuidanceDataset returns, out of the index: no sample is looked at by itself."""
        numbers = self._samples.numbers if indices is None else self._samples.numbers[np.asarray(indices)]
        names = [name for name in self.channels if not self._track(self._samples[0], name).kind.in_frame]
        return {name: mean_and_deviation(self.moments_of(numbers, name)) for name in names}

    def moments_of(self, numbers: np.ndarray, name: str) -> Iterator[Moments]:
        """Yield what samples' rows of a type add to the statistics. numbers: ascending, of the index."""
        for number, content in self.index.moments(numbers):
            found = unpack_moments(content) if content is not None else {}
            kept = next((one for (kept_name, _), one in found.items() if kept_name == name), None)
            if kept is not None:
                yield kept
            else:
                place = int(np.searchsorted(self._samples.numbers, number))
                yield from super()._moments([self._samples[place]], name, self.channels[name])


class IndexedSamples(Sequence[Sample]):
    """The samples `numbers` of an index, each made when it is asked for."""

    def __init__(self, index: ShardIndex, root: Path, guidance_types: Sequence[str]) -> None:
        self.index, self.root = index, root
        self.folders = {name: type_dir(Path(), name).name for name in guidance_types}
        self.numbers = np.arange(len(index), dtype=np.int32)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Sample:
        row = self.index.row(int(self.numbers[place]))
        found: dict[str, dict[str, None]] = {}  # {folder: entries, in order}
        for path in row.files:
            folder, entry = PurePosixPath(path).parts[:2]
            if entry != META_NAME:
                found.setdefault(folder, {})[entry] = None
        names = {folder: tuple(entries) for folder, entries in found.items()}
        return Sample(
            row.name, self.root / self.index.shards[row.shard].name / key_of(row.name),
            names.get(VIDEO_FOLDER, ()), names.get(REFERENCE_FOLDER, ()),
            {name: names.get(folder, ()) for name, folder in self.folders.items()},
        )  # fmt: skip

    @property
    def names(self) -> Sequence[str]:
        return ChosenNames(self.index.names, self.numbers)


class ChosenNames(Sequence[str]):
    """The names of the samples `numbers`."""

    def __init__(self, names: Sequence[str], numbers: np.ndarray) -> None:
        self.names_of_all, self.numbers = names, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> str:
        return self.names_of_all[int(self.numbers[place])]


class _IndexedFacts:
    """What the check kept of each sample, out of the index: as KeptFacts, but that nothing changes."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index

    def frame_table(self, sample: Sample) -> FrameTable | None:
        content = self.index.row(self.index.number_of(sample.sample_id)).frame_table
        return None if content is None else unpack_table(content)

    def moments(self, sample: Sample, type_name: str, look: bytes) -> None:
        """Return None: of samples whose rows are too large, nothing is kept."""


def check_verdict(index: ShardIndex, settings: CheckSettings) -> None:
    """Raise DataError where the check that was made before packing does not hold for these settings."""
    packed = index.about["settings"]
    for name, channels in settings.channels.items():
        if name not in packed["channels"]:
            has = ", ".join(packed["channels"])
            raise DataError(index.path, f"has no {name}, only {has}", "pack it too, with --guidance_types")
        if packed["channels"][name] != channels:
            fix = f"set {name}'s --guidance_input_channels to {packed['channels'][name]}"
            problem = f"{name} has {packed['channels'][name]} channels, not {channels}"
            raise DataError(index.path, problem, fix)
    if packed["kinds"] != own_kinds():
        problem = "was checked with other --guidance_modules, or with other code in them"
        raise DataError(index.path, problem, f"give the same, or {PACK_AGAIN}")
    before, now = packed["music_feature_fps"], settings.music_feature_fps
    if "music" in settings.channels and before != now:
        problem = f"was checked with --music_feature_fps {before}, now it is {now}"
        raise DataError(index.path, problem.replace("None", "none"), f"give the same, or {PACK_AGAIN}")


def long_enough(
    index: ShardIndex, span: int, *, skip_invalid: bool
) -> tuple[np.ndarray, list[tuple[str, str]]]:
    """Return (the samples with a clip's frames, the others and why they are left out). Raises DataError."""
    too_short = np.flatnonzero(index.num_frames < span)
    if len(too_short) and not skip_invalid:
        raise _too_short(index, too_short, span)
    reason = f"shorter than a clip of {span} frames"
    gone = [(index.names[number], reason) for number in too_short.tolist()]
    return np.delete(np.arange(len(index), dtype=np.int32), too_short), gone


def _too_short(index: ShardIndex, numbers: np.ndarray, span: int) -> DataError:
    name, frames = index.names[int(numbers[0])], int(index.num_frames[numbers[0]])
    more = f" (and {len(numbers) - 1} more)" if len(numbers) > 1 else ""
    fix = "lower (--sequence_length - 1) x --frame_stride, or leave them out with --skip_invalid"
    return DataError(index.path, f"sample {name!r} has {frames} frames, a clip needs {span}{more}", fix)
