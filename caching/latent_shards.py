"""Clips out of a latent cache that was packed into shards: no video is there, and none is read."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from datasets.packed_files import mount
from datasets.transforms import as_size
from shards.clips import ChosenNames, ShardSettings, long_enough, open_shards
from shards.index import IndexedFiles
from shards.layout import key_of
from shards.read_ahead import InShards
from system.errors import ConfigError, DataError

from .cached_clips import CachedClips
from .tensor_file import PackedTensors, packed_tensors


class LatentShards(InShards, CachedClips):
    """The clips that CachedClips gives of the cache that was packed; it stands for the data folder, too.

    The arguments after `shards` are GuidanceDataset's: `check_encoded_by` holds them against the cache's.
    """

    center_crop, random_flip = True, False  # as in every cache
    buckets = ()

    def __init__(
        self, data_root: str | Path, channels: dict[str, int], *, shards: ShardSettings, resolution,
        sequence_length: int, frame_stride: int, seed: int, fit: str, music_feature_fps: float | None,
        data_format: str = "video", skip_invalid: bool = False, **_,
    ) -> None:  # fmt: skip
        self.index, self.store = open_shards(data_root, shards)
        self.data_root, self.channels = Path(data_root), dict(channels)
        self.about = self.index.about["latents"]
        self.resolution, self.fit, self.music_feature_fps = as_size(resolution), fit, music_feature_fps
        self.sequence_length = 1 if data_format == "image" else sequence_length
        self.frame_stride = frame_stride
        span = 1 + (self.sequence_length - 1) * frame_stride
        self.numbers, self.left_out = long_enough(self.index, span, skip_invalid=skip_invalid)
        if not len(self.numbers):
            problem = f"no sample has a clip's {span} frames"
            raise DataError(self.index.path, problem, "lower --sequence_length")
        names = ChosenNames(self.index.names, self.numbers)
        CachedClips.__init__(
            self, {}, names, sequence_length=self.sequence_length, frame_stride=frame_stride, seed=seed
        )  # fmt: skip
        self.files = IndexedFiles(self.index, self.store)
        mount(self.data_root, self.files)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        mount(self.data_root, self.files)  # in a worker that was not forked

    def __len__(self) -> int:
        return len(self.numbers)

    def path_of(self, index: int) -> Path:
        row = self.index.row(int(self.numbers[index]))
        return self.data_root / self.index.shards[row.shard].name / key_of(row.name) / next(iter(row.files))

    @contextmanager
    def opened(self, index: int) -> Iterator[PackedTensors]:
        with packed_tensors(self.path_of(index)) as file:
            yield file

    # ---- what the data folder said, when it was packed ----

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(shape) for name, shape in self.about["condition_shapes"].items()}

    @property
    def frame_rate(self) -> float:
        return self.about["frame_rate"]

    def recipe(self, type_name: str) -> str | None:
        return self.index.about["recipes"].get(type_name)

    def num_frames(self, index: int) -> int:
        return int(self.index.num_frames[self.numbers[index]])

    def feature_statistics(self, indices: Sequence[int] | None = None) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what GuidanceDataset returns, of all that was packed."""
        return {
            name: tuple(torch.tensor(part, dtype=torch.float32) for part in parts)
            for name, parts in self.about["statistics"].items()
        }

    def check_encoded_by(self, settings: dict) -> None:
        """Raise ConfigError where a cache of these settings would have other latents."""
        packed = self.about["settings"]
        others = sorted(name for name in {*packed, *settings} if packed.get(name) != settings.get(name))
        if others:
            problem = f"its latents were encoded with other {', '.join(others)} than this run's"
            fix = "give the same, or train from the data and pack that cache"
            raise ConfigError(f"{self.data_root}: {problem}: {fix}")
