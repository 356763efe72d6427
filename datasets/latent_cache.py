"""The latent cache: a safetensors file a sample, with all of a video's frames as the model takes them.

Training reads the rows of a clip and neither decodes nor encodes. A file is named by the digest of all that
decided its content; it is written aside, flushed and renamed, so that a file of that name is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import DataError
from .guidance_dataset import GuidanceDataset
from .source_digests import SourceDigests

FORMAT_VERSION = 1  # raised with what is written, and with how frames are resampled
SETTINGS_NAME = "settings.json"
ABANDONED_SECONDS = 3600  # a file being written is finished within seconds
WITHOUT_FRAMES = ("reference_latents", "image_tokens")  # what a sample has once
GUIDANCE_PREFIX = "guidance/"


@dataclass(frozen=True)
class CacheEntry:
    """A sample's file: where it is or shall be, and why it must be built (None: it is there)."""

    index: int
    path: Path
    key: dict
    reason: str | None = None
    num_frames: int = 0  # to be built
    outdated: tuple[Path, ...] = ()  # what the new file replaces


class LatentCache:
    """The entries of a dataset under one set of settings, in a folder of their own.

    `encoded_by` names what encodes: digests of the networks, the precision. Several runs and datasets may
    share cache_dir. The dataset must have center_crop, so that a video has one transform.
    """

    def __init__(self, dataset: GuidanceDataset, cache_dir: str | Path, encoded_by: dict[str, str]) -> None:
        if not dataset.center_crop or dataset.random_flip:
            raise ValueError("a cache needs one transform a video: center_crop, and no random_flip")
        self.dataset, self.cache_dir = dataset, Path(cache_dir)
        self.data_root, self.sample_ids = os.path.abspath(dataset.data_root), dataset.sample_ids
        self.settings = {
            "format": FORMAT_VERSION, "resolution": list(dataset.resolution), "fit": dataset.fit,
            "guidance": dataset.channels, "music_feature_fps": dataset.music_feature_fps, **encoded_by,
        }  # fmt: skip
        self.folder = self.cache_dir / _digest(self.settings)[:16]

    # ---- what is there ----

    def find(self, indices: Sequence[int], process_index: int = 0) -> list[CacheEntry]:
        """The entries of samples; reads the sources whose size or time changed. Raises DataError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            digests = SourceDigests(self.cache_dir, process_index)
            names: dict[str, list[Path]] = {}
            for path in self.folder.glob("*.safetensors"):
                names.setdefault(path.name.rsplit("-", 1)[0], []).append(path)
            entries = [self._entry(index, digests, names) for index in indices]
            digests.save()
        except OSError as error:
            raise self._no_writing(error) from error
        return entries

    def _entry(self, index: int, digests: SourceDigests, names: dict[str, list[Path]]) -> CacheEntry:
        key = dict(self.settings)
        for name, (files, fps) in self.dataset.source_files(index).items():
            key[name] = digests.digest(files) + ("" if fps is None else f" at {fps!r} a second")
        stem = _file_stem(self.sample_ids[index])
        path = self.folder / f"{stem}-{_digest(key)[:16]}.safetensors"
        found = names.get(stem, [])
        if path in found and (_metadata(path) or {}).get("key") == _as_json(key):
            return CacheEntry(index, path, key)
        num_frames = self.dataset.num_frames(index)
        if path in found:
            return CacheEntry(index, path, key, "damaged", num_frames)
        reason, earlier = "new", {}  # {file of this very sample: its key}
        for other in found:
            metadata = _metadata(other) or {}
            if metadata.items() >= self._owner(index).items():
                earlier[other] = json.loads(metadata["key"])
        for before in earlier.values():
            reason = f"{' and '.join(name for name in key if key[name] != before.get(name))} changed"
        return CacheEntry(index, path, key, reason, num_frames, tuple(earlier))

    def _owner(self, index: int) -> dict[str, str]:
        return {"data_root": self.data_root, "sample_id": self.sample_ids[index]}

    def note_on_other_settings(self) -> str | None:
        """Why there is no entry although the folder has some: which settings are others, or None."""
        others = [path for path in self.cache_dir.glob(f"*/{SETTINGS_NAME}") if path.parent != self.folder]
        if (self.folder / SETTINGS_NAME).exists() or not others:
            return None
        latest = max(others, key=lambda path: path.stat().st_mtime)
        try:
            before = json.loads(latest.read_text())
        except ValueError:
            before = {}
        names = sorted(
            name for name in {*before, *self.settings} if before.get(name) != self.settings.get(name)
        )
        return (
            f"other {', '.join(names)} than in {latest.parent}: all samples are built anew; "
            "delete that folder if it is not needed"
        )

    def num_bytes(self, num_frames: int, num_samples: int, latent_bytes: int) -> int:
        """About what so many frames take, `latent_bytes` of them latents a frame. Reads one frame."""
        guidance = next(iter(self.dataset.read_whole(0, 1)))["guidance"]
        frame_bytes = latent_bytes + 8 + sum(pack(condition).nbytes for condition in guidance.values())
        return num_frames * frame_bytes + num_samples * (latent_bytes + 8192)

    def check_space(self, needed: int) -> None:
        """Raises DataError when the folder's disk has no room for so many bytes more."""
        free = self._free_bytes()
        if needed > free:
            problem = (
                f"the latent cache needs {_gigabytes(needed)} more, but the disk has {_gigabytes(free)} free"
            )
            raise DataError(self.cache_dir, problem, "make room, or give a folder elsewhere with --cache_dir")

    def _free_bytes(self) -> int:
        place = next(path for path in (self.folder, *self.folder.resolve().parents) if path.exists())
        return shutil.disk_usage(place).free

    # ---- building ----

    def build(
        self, entry: CacheEntry, encoder, on_part: Callable[[int], None] = lambda num_frames: None
    ) -> None:
        """Writes an entry's file. Raises DataError; then nothing half-written is left.

        encoder.num_frames says how many frames it takes at once; encoder.encode_frames(frames) and
        encoder.encode_reference(reference_image, clip_image) return {name: tensor}. on_part is told of
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
        try:
            self._write(entry, tensors)
        except (OSError, SafetensorError) as error:
            raise self._no_writing(error) from error

    def _write(self, entry: CacheEntry, tensors: dict[str, Tensor]) -> None:
        settings_path = self.folder / SETTINGS_NAME
        if not settings_path.exists():
            settings_path.write_text(json.dumps(self.settings, indent=1))
        metadata = {"key": _as_json(entry.key), **self._owner(entry.index)}
        aside = entry.path.with_name(f"{entry.path.name[-40:]}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside, metadata)
            shutil.copymode(settings_path, aside)  # save_file gives rights to the owner alone
            _fsync(aside)
            os.replace(aside, entry.path)
            _fsync(self.folder)
        finally:
            aside.unlink(missing_ok=True)
        for path in entry.outdated:
            path.unlink(missing_ok=True)

    def _no_writing(self, error: Exception) -> DataError:
        if "No space left" in str(error) or "not enough space" in str(error):
            problem = f"the disk became full ({_gigabytes(self._free_bytes())} free)"
            fix = "make room, or give a folder elsewhere with --cache_dir; what is built so far is kept"
            return DataError(self.cache_dir, f"{problem} while the latent cache was written", fix)
        return DataError(
            self.cache_dir, f"the latent cache cannot be written ({error})", "give another --cache_dir"
        )

    def remove_abandoned(self) -> None:
        """Removes what killed processes left half-written."""
        for path in (*self.folder.glob("*.tmp"), *self.folder.glob(".tmp*")):
            try:
                if path.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                    path.unlink()
            except FileNotFoundError:  # another process was quicker
                continue


# ---- the files ----


def pack(condition: Tensor) -> Tensor:
    """Pictures [n, C, H, W] of 256 levels in 0..1 as uint8, which unpack turns back; all else as it is."""
    if condition.dim() != 4 or condition.dtype != torch.float32:
        return condition
    levels = (condition * 255).round()
    in_range = levels.min() >= 0 and levels.max() <= 255
    return levels.byte() if in_range and torch.equal(levels / 255, condition) else condition


def unpack(packed: Tensor) -> Tensor:
    return packed.float() / 255 if packed.dtype == torch.uint8 else packed


def _put(whole: dict[str, Tensor], part: dict[str, Tensor], first: int, num_rows: int) -> None:
    """Puts rows into tensors of all rows, which the first part makes.

    Kept as a list, the small parts would lie between the frames' memory, and hinder it from being used again:
    the process would grow as if all frames were kept.
    """
    for name, rows in part.items():
        if name not in whole:
            whole[name] = torch.empty(num_rows, *rows.shape[1:], dtype=rows.dtype)
        elif whole[name].dtype != rows.dtype:  # not all of a video's maps are of bytes
            whole[name], rows = unpack(whole[name]), unpack(rows)
        whole[name][first : first + len(rows)] = rows


def _metadata(path: Path) -> dict[str, str] | None:
    """A file's metadata, None where it is damaged or cut off: its length must be what its header says."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata()
    except (OSError, SafetensorError):
        return None


def _file_stem(sample_id: str) -> str:
    """At most 160 bytes, as file names end at 255."""
    return sample_id.encode()[:160].decode(errors="ignore")


def _digest(value) -> str:
    return hashlib.blake2b(_as_json(value).encode(), digest_size=16).hexdigest()


def _as_json(value) -> str:
    return json.dumps(value, sort_keys=True)


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 / 10 else f"{num_bytes / 2**20:.1f} MiB"


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to flush a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
