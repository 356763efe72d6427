"""Clips from the latent cache: the same clips in the same order as GuidanceDataset's, encoded already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch.utils.data import Dataset

from .clip_frames import check_clip, clip_generator, draw_start
from .errors import DataError
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
        self.paths, self.sample_ids, self.seed = dict(paths), list(sample_ids), seed
        self.offsets = frame_stride * np.arange(sequence_length)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.paths)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        """The clip that GuidanceDataset draws for (seed, epoch, sample). Raises DataError."""
        path, sample_id = self.paths[index], self.sample_ids[index]
        try:
            with safe_open(path, framework="pt") as file:
                num_frames = file.get_slice("frame_seconds").get_shape()[0]
                generator = clip_generator(self.seed, self.epoch, sample_id)
                frames = self.offsets + draw_start(generator, num_frames, self.offsets[-1] + 1)
                check_clip(path, num_frames, frames)
                item = _read_rows(file, frames)
        except (OSError, SafetensorError) as error:
            fix = "start again: the latent cache is checked then, and what is damaged is rebuilt"
            raise DataError(path, f"cannot be read ({error})", fix) from error
        return {**item, "sample_id": sample_id, "frame_indices": torch.from_numpy(frames)}


def _read_rows(file, frames: np.ndarray) -> dict:
    """The rows of these frames, which ascend evenly, and what the sample has once."""
    step = int(frames[1] - frames[0]) if len(frames) > 1 else 1
    rows = slice(int(frames[0]), int(frames[-1]) + 1, step)
    item, guidance = {}, {}
    for name in file.keys():
        if name in WITHOUT_FRAMES:
            item[name] = file.get_tensor(name)
        elif name.startswith(GUIDANCE_PREFIX):
            guidance[name.removeprefix(GUIDANCE_PREFIX)] = unpack(file.get_slice(name)[rows])
        else:
            item[name] = file.get_slice(name)[rows]
    return {**item, "guidance": guidance}
