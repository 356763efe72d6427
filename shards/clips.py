"""Clips out of shards: GuidanceDataset over files that lie in them."""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from datasets.checking.kept_facts import unpack_moments, unpack_table
from datasets.checking.sample_check import CheckSettings
from datasets.data_folder import REFERENCE_FOLDER, VIDEO_FOLDER, DataFolder, Sample, type_dir
from datasets.feature_statistics import Moments
from datasets.guidance.track import META_NAME
from datasets.guidance_dataset import GuidanceDataset
from datasets.media.video import FrameTable
from system.errors import DataError
from system.packed_files import mount

from .index import PACK_AGAIN, IndexedFiles, ShardIndex
from .layout import INDEX_NAME, key_of
from .store import LocalShards


def has_shards(data_root: str | Path) -> bool:
    """Return whether a folder is one of shards, which has an index."""
    return Path(data_root, INDEX_NAME).is_file()


def open_index(data_root: str | Path) -> ShardIndex:
    return ShardIndex(Path(data_root, INDEX_NAME))


class ShardClips(GuidanceDataset):
    """The clips that GuidanceDataset gives of the data folder that was packed, bit for bit."""

    def __init__(self, data_root: str | Path, *arguments, notes_dir: Path | None = None, **keywords) -> None:
        self.index = open_index(data_root)
        self.files = IndexedFiles(self.index, LocalShards(Path(data_root), notes_dir))
        mount(data_root, self.files)
        super().__init__(data_root, *arguments, kept=_IndexedFacts(self.index), **keywords)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        mount(self.data_root, self.files)  # in a worker that was not forked

    def _listed(
        self, settings: CheckSettings, skip_invalid: bool, left_out: Sequence[tuple[str, str]] | None
    ) -> tuple[DataFolder, Sequence[Sample], list[tuple[str, str]]]:
        check_verdict(self.index, settings)
        too_short = np.flatnonzero(self.index.num_frames < settings.clip_span)
        if len(too_short) and not (skip_invalid or left_out is not None):
            raise _too_short(self.index, too_short, settings.clip_span)
        samples = IndexedSamples(self.index, self.data_root, list(settings.channels))
        samples.numbers = np.delete(samples.numbers, too_short)
        reason = f"shorter than a clip of {settings.clip_span} frames"
        gone = [(self.index.names[number], reason) for number in too_short.tolist()]
        return DataFolder(self.data_root, samples, [], []), samples, gone

    @property
    def sample_ids(self) -> Sequence[str]:
        return self._samples.names

    @property
    def shard_numbers(self) -> np.ndarray:
        """Return the shard of each sample, int32 [N]."""
        return self.index.shard_numbers[self._samples.numbers]

    def music_recipe(self) -> str | None:
        return self.index.about["recipe"]

    def _moments(self, samples: Sequence[Sample], name: str, channels: int) -> Iterator[Moments]:
        for sample in samples:
            found = self._kept.moments(sample, name)
            yield from [found] if found is not None else super()._moments([sample], name, channels)


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
        return _Chosen(self.index.names, self.numbers)


class _Chosen(Sequence[str]):
    def __init__(self, names: Sequence[str], numbers: np.ndarray) -> None:
        self.names_of_all, self.numbers = names, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> str:
        return self.names_of_all[int(self.numbers[place])]


class _IndexedFacts:
    """What the check kept of each sample, out of the index: as KeptFacts, but that nothing has changed."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index

    def frame_table(self, sample: Sample) -> FrameTable | None:
        content = self.index.row(self.index.number_of(sample.sample_id)).frame_table
        return None if content is None else unpack_table(content)

    def moments(self, sample: Sample, type_name: str) -> Moments | None:
        content = self.index.row(self.index.number_of(sample.sample_id)).moments
        found = unpack_moments(content) if content is not None else {}
        return next((one for (name, _), one in found.items() if name == type_name), None)


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
    before, now = packed["music_feature_fps"], settings.music_feature_fps
    if "music" in settings.channels and before != now:
        problem = f"was checked with --music_feature_fps {before}, now it is {now}"
        raise DataError(index.path, problem.replace("None", "none"), f"give the same, or {PACK_AGAIN}")


def _too_short(index: ShardIndex, numbers: np.ndarray, span: int) -> DataError:
    name, frames = index.names[int(numbers[0])], int(index.num_frames[numbers[0]])
    more = f" (and {len(numbers) - 1} more)" if len(numbers) > 1 else ""
    fix = "lower (--sequence_length - 1) x --frame_stride, or leave them out with --skip_invalid"
    return DataError(index.path, f"sample {name!r} has {frames} frames, a clip needs {span}{more}", fix)
