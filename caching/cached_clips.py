"""Clips from the latent cache: the same clips in the same order as GuidanceDataset's, encoded already."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.clip_frames import check_clip, clip_generator, draw_start

from .cache_folder import opened
from .feature_cache import BANK_PREFIX, FEATURE_PREFIX
from .latent_cache import GUIDANCE_PREFIX, WITHOUT_FRAMES, unpack


class CachedClips(Dataset):
    """Random clips out of cache files, under the indices of the dataset that they were built from.

    An item is a dict: latent_mean and, of a VAE that has one, latent_std [F, 4, h, w], not scaled;
    reference_latents [4, h, w], scaled; image_tokens [L, D]; guidance {type: [F, ...]}, sample_id,
    frame_indices and frame_seconds as GuidanceDataset has them. A file is mapped while it is read.
    """

    def __init__(
        self, paths: Mapping[int, Path], sample_ids: Sequence[str], *,
        sequence_length: int, frame_stride: int, seed: int,
    ) -> None:  # fmt: skip
        self.paths, self.sample_ids, self.seed = dict(paths), sample_ids, seed
        self.offsets = frame_stride * np.arange(sequence_length)
        self.epoch = 0
        self.feature_paths: dict[int, Path] = {}
        self.unread: frozenset[str] = frozenset()

    def add_features(self, paths: Mapping[int, Path], unread_types: Sequence[str] = ()) -> None:
        """Give items guidance_features {type: [F, C, h, w]} and reference_bank {name: [L, C]} too.

        They come from the feature cache's files, under the same indices. The conditions of `unread_types`
        are left out of guidance.
        """
        self.feature_paths, self.unread = dict(paths), frozenset(unread_types)

    def __len__(self) -> int:
        return len(self.paths)

    def path_of(self, index: int) -> Path:
        return self.paths[index]

    def opened(self, index: int) -> AbstractContextManager:
        """Return a context with a sample's file, to read tensors from. It raises DataError."""
        return opened(self.path_of(index))

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        """Return the clip that GuidanceDataset draws for (seed, epoch, sample). Raises DataError."""
        sample_id = self.sample_ids[index]
        with self.opened(index) as file:
            num_frames = file.get_slice("frame_seconds").get_shape()[0]
            generator = clip_generator(self.seed, self.epoch, sample_id)
            frames = self.offsets + draw_start(generator, num_frames, self.offsets[-1] + 1)
            check_clip(self.path_of(index), num_frames, frames)
            item = _read_latents(file, _as_slice(frames), self.unread)
        if self.feature_paths:
            with opened(self.feature_paths[index]) as file:
                item |= _read_features(file, _as_slice(frames))
        return {**item, "sample_id": sample_id, "frame_indices": torch.from_numpy(frames)}

    def read_guidance(self, sample_id: str, frame_indices: Tensor) -> dict[str, Tensor]:
        """Return all conditions {type: [F, ...]} of a clip that has been drawn. Raises DataError."""
        with self.opened(self.sample_ids.index(sample_id)) as file:
            return _read_latents(file, _as_slice(frame_indices.numpy()), frozenset())["guidance"]


def _as_slice(frames: np.ndarray) -> slice:
    """Return evenly ascending frames as a slice."""
    step = int(frames[1] - frames[0]) if len(frames) > 1 else 1
    return slice(int(frames[0]), int(frames[-1]) + 1, step)


def _read_latents(file, rows: slice, unread: frozenset[str]) -> dict:
    """Return the rows of these frames, and the tensors that a sample has once."""
    item, guidance = {}, {}
    for name in file.keys():
        guidance_type = name.removeprefix(GUIDANCE_PREFIX)
        if name in WITHOUT_FRAMES:
            item[name] = file.get_tensor(name)
        elif guidance_type == name:
            item[name] = file.get_slice(name)[rows]
        elif guidance_type not in unread:
            guidance[guidance_type] = unpack(file.get_slice(name)[rows])
    return {**item, "guidance": guidance}


def _read_features(file, rows: slice) -> dict:
    features, bank = {}, {}
    for name in file.keys():
        if name.startswith(FEATURE_PREFIX):
            features[name.removeprefix(FEATURE_PREFIX)] = file.get_slice(name)[rows]
        else:
            bank[name.removeprefix(BANK_PREFIX)] = file.get_tensor(name)
    return {"guidance_features": features, "reference_bank": bank}
