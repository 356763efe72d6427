"""The feature cache: what frozen guidance encoders and the reference UNet make of the latent cache's samples.

The motion stage trains neither of them: their features stay what they are. One file per sample, named as the
sample's file in the latent cache, so that it is outdated when that one is.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from .cache_folder import CacheEntry, CacheFolder, as_json, opened, stem_of
from .latent_cache import GUIDANCE_PREFIX, WITHOUT_FRAMES, unpack
from .tensor_file import TensorFile

FORMAT_VERSION = 1
FEATURE_PREFIX = "features/"  # of a guidance type, one row per frame
BANK_PREFIX = "bank/"  # of the reference UNet, once per sample


class FeatureCache(CacheFolder):
    """The features of the samples whose latents are in the files `latent_paths` {index: file}.

    `made_by` is their fingerprint: digests of the networks, the precision. It lies beside the latent cache.
    """

    title = "feature cache"

    def __init__(self, latent_paths: dict[int, Path], cache_dir: str | Path, made_by: dict[str, str]) -> None:
        self.latent_paths = dict(latent_paths)
        super().__init__(Path(cache_dir) / "features", {"format": FORMAT_VERSION, **made_by})

    def find(self, indices: Sequence[int], process_index: int = 0) -> list[CacheEntry]:
        """Return the entries of samples. Raises DataError."""
        files, entries = self.files_by_stem(), []
        for index in indices:
            path = self.folder / self.latent_paths[index].name
            entries.append(self.entry(index, path, {"latents": path.name}, files.get(stem_of(path), [])))
        return entries

    def look(self, index: int) -> tuple[dict[str, str], int]:
        with opened(self.latent_paths[index]) as file:
            metadata, num_frames = file.metadata(), file.get_slice("frame_seconds").get_shape()[0]
        return {name: metadata[name] for name in ("data_root", "sample_id")}, num_frames

    def num_bytes(self, num_frames: int, num_samples: int, encoder) -> int:
        """Return the approximate size of so many frames and samples, all as large as the largest."""
        shape = encoder.feature_shape(encoder.latent_size)
        frame_bytes = len(encoder.guidance_types) * math.prod(shape) * encoder.dtype.itemsize
        return num_frames * frame_bytes + num_samples * (encoder.bank_bytes + 8192)

    def build(self, entry: CacheEntry, encoder, on_part: Callable[[int], None] = lambda _: None) -> None:
        """Write an entry's file. Raises DataError; then nothing half-written is left.

        encoder.encode_guidance({type: [n, ...]}, (h, w)) returns {type: [n, *encoder.feature_shape((h, w))]}
        for the types encoder.guidance_types, at most encoder.num_frames at once, at the latents' size;
        encoder.encode_bank(reference_latents, image_tokens) returns {name: [L, C]}. All are on the CPU and of
        encoder.dtype. on_part is called with each number of frames that is done.
        """
        source, types = self.latent_paths[entry.index], encoder.guidance_types
        reference_latents, image_tokens = (_read(source, name) for name in WITHOUT_FRAMES)
        latent_size = tuple(reference_latents.shape[-2:])
        bank = encoder.encode_bank(reference_latents, image_tokens)
        layout = {BANK_PREFIX + name: (encoder.dtype, list(tensor.shape)) for name, tensor in bank.items()}
        for name in types:
            shape = [entry.num_frames, *encoder.feature_shape(latent_size)]
            layout[FEATURE_PREFIX + name] = (encoder.dtype, shape)
        metadata = {"key": as_json(entry.key), **self.look(entry.index)[0]}
        with self.written_aside(entry) as path, TensorFile(path, layout, metadata) as file:
            for name, tensor in bank.items():
                file.put(BANK_PREFIX + name, tensor)
            for first in range(0, entry.num_frames, encoder.num_frames):
                rows = slice(first, min(first + encoder.num_frames, entry.num_frames))
                conditions = {name: unpack(_read(source, GUIDANCE_PREFIX + name, rows)) for name in types}
                for name, feature in encoder.encode_guidance(conditions, latent_size).items():
                    file.put(FEATURE_PREFIX + name, feature, first)
                on_part(rows.stop - rows.start)


def _read(latent_path: Path, name: str, rows: slice = slice(None)) -> Tensor:
    with opened(latent_path) as file:
        return file.get_slice(name)[rows]
