"""The latent cache: one safetensors file per sample, with all frames of a video as the model takes them.

Training reads the rows of a clip and neither decodes nor encodes.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from datasets.guidance_dataset import GuidanceDataset

from .cache_folder import CacheEntry, CacheFolder, as_json, digest
from .source_digests import SourceDigests

FORMAT_VERSION = 2  # raised with what is written, and with how frames are read and resampled
WITHOUT_FRAMES = ("reference_latents", "image_tokens")  # once per sample
GUIDANCE_PREFIX = "guidance/"


class LatentCache(CacheFolder):
    """The entries of a dataset under one set of settings, in a folder of their own.

    `encoded_by` is the fingerprint of the encoders: digests of the networks, the precision. Several runs and
    datasets may share cache_dir. The dataset must have center_crop, so that a video has one transform.
    """

    title = "latent cache"

    def __init__(self, dataset: GuidanceDataset, cache_dir: str | Path, encoded_by: dict[str, str]) -> None:
        if not dataset.center_crop or dataset.random_flip:
            raise ValueError("a cache needs one transform per video: center_crop, and no random_flip")
        self.dataset = dataset
        self.data_root, self.sample_ids = os.path.abspath(dataset.data_root), dataset.sample_ids
        # With buckets a sample's own is in its key: one whose size stays when buckets change is kept.
        resolution = "of buckets" if dataset.buckets else list(dataset.resolution)
        super().__init__(cache_dir, {
            "format": FORMAT_VERSION, "resolution": resolution, "fit": dataset.fit,
            "guidance": dataset.channels, "music_feature_fps": dataset.music_feature_fps, **encoded_by,
        })  # fmt: skip

    # ---- what is there ----

    def find(self, indices: Sequence[int], process_index: int = 0) -> list[CacheEntry]:
        """Return the entries of samples; reads the sources whose size or time changed. Raises DataError."""
        files = self.files_by_stem()
        with self.faults_explained():
            digests = SourceDigests(self.cache_dir, process_index)
            entries = [self._entry(index, digests, files) for index in indices]
            digests.save()
        return entries

    def _entry(self, index: int, digests: SourceDigests, files: dict[str, list[Path]]) -> CacheEntry:
        key = self.settings | {"resolution": list(self.dataset.clip_size(index))}
        for name, (sources, stated) in self.dataset.source_files(index).items():
            key[name] = digests.digest(sources) + stated
        stem = self.sample_ids[index].encode()[:160].decode(errors="ignore")  # file names end at 255 bytes
        path = self.folder / f"{stem}-{digest(key)[:16]}.safetensors"
        return self.entry(index, path, key, files.get(stem, []))

    def look(self, index: int) -> tuple[dict[str, str], int]:
        owner = {"data_root": self.data_root, "sample_id": self.sample_ids[index]}
        return owner, self.dataset.num_frames(index)

    def num_bytes(self, num_frames: int, num_samples: int, latent_bytes: int) -> int:
        """Return the approximate size of so many frames of `latent_bytes` each. Reads one frame."""
        guidance = next(iter(self.dataset.read_whole(0, 1)))["guidance"]
        frame_bytes = latent_bytes + 8 + sum(pack(condition).nbytes for condition in guidance.values())
        return num_frames * frame_bytes + num_samples * (latent_bytes + 8192)

    # ---- building ----

    def build(self, entry: CacheEntry, encoder, on_part: Callable[[int], None] = lambda _: None) -> None:
        """Write an entry's file. Raises DataError; then nothing half-written is left.

        encoder.num_frames says how many frames it takes at once; encoder.encode_frames(frames) and
        encoder.encode_reference(reference_image, clip_image) return {name: tensor}. on_part is called with
        each number of frames that is done.
        """
        tensors, first = {}, 0
        for part in self.dataset.read_whole(entry.index, encoder.num_frames):
            guidance = {GUIDANCE_PREFIX + name: pack(rows) for name, rows in part["guidance"].items()}
            _put(tensors, {**encoder.encode_frames(part["frames"]), **guidance}, first, entry.num_frames)
            first += len(part["frames"])
            on_part(len(part["frames"]))
        tensors |= encoder.encode_reference(**self.dataset.read_reference(entry.index))
        tensors["frame_seconds"] = torch.from_numpy(self.dataset.frame_seconds(entry.index))
        metadata = {"key": as_json(entry.key), **self.look(entry.index)[0]}
        with self.written_aside(entry) as path:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


# ---- what is in the files ----


def pack(condition: Tensor) -> Tensor:
    """Return maps [n, C, H, W] of 256 levels in 0..1 as uint8, for `unpack`; all else as it is."""
    if condition.dim() != 4 or condition.dtype != torch.float32:
        return condition
    levels = (condition * 255).round()
    in_range = levels.min() >= 0 and levels.max() <= 255
    return levels.byte() if in_range and torch.equal(levels / 255, condition) else condition


def unpack(packed: Tensor) -> Tensor:
    return packed.float() / 255 if packed.dtype == torch.uint8 else packed


def _put(whole: dict[str, Tensor], part: dict[str, Tensor], first: int, num_rows: int) -> None:
    """Put rows into tensors of all rows, which the first part makes.

    Kept as a list, the small parts would lie between the frames' memory, and hinder it from being used again:
    the process would grow as if all frames were kept.
    """
    for name, rows in part.items():
        if name not in whole:
            whole[name] = torch.empty(num_rows, *rows.shape[1:], dtype=rows.dtype)
        elif whole[name].dtype != rows.dtype:  # not all of a video's maps are of bytes
            whole[name], rows = unpack(whole[name]), unpack(rows)
        whole[name][first : first + len(rows)] = rows
