"""A latent cache to shards: what of it is of a data folder and up to date, the shards, their index."""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from datasets import GuidanceDataset
from datasets.checking.data_report import printable
from datasets.data_folder import RECIPES
from shards.packing import Packing, PlannedSample, into_shards, locked_output
from system.errors import DataError

from .cache_folder import SETTINGS_NAME, CacheEntry, digest, opened
from .latent_cache import LatentCache

OF_DATASET = ("resolution", "fit", "music_feature_fps")  # settings of a cache that GuidanceDataset has too
TRAIN_FIX = "train with --cache_latents, which builds it"


def pack_cache(
    data_dir: str, cache_dir: Path, output_dir: Path, *, shard_bytes: int, num_workers: int | None = None
) -> int:
    """Pack the latents of a data folder's samples, sum up; return the exit code. Raises DataError."""
    cache = open_cache(data_dir, cache_dir)
    entries = usable(cache, cache.find(range(len(cache.dataset))))
    names = [cache.sample_ids[entry.index] for entry in entries]
    with locked_output(output_dir, names, of_latents=True):
        packing = Packing(cache.folder, output_dir, into_shards(planned(cache, entries), shard_bytes))
        settings = {"latents": cache.settings}
        if packing.is_done(settings):
            print(printable(f"{output_dir}: up to date, {packing.count()}"))
            return 0
        problems = packing.write_shards(num_workers)
        for problem in problems:
            print(printable(f"error: {problem}"), file=sys.stderr)
        if problems:
            return 2
        frames = {cache.sample_ids[entry.index]: num_frames_of(entry) for entry in entries}
        about = {"settings": settings, "left_out": [], **describe(cache, entries)}
        packing.write_index(about, lambda name: (frames[name], None, None), lambda name: "")
    num_left = len(cache.sample_ids) - len(entries)
    left = f", {num_left} samples of {data_dir} are not in the cache" if num_left else ""
    print(printable(f"{output_dir}: {packing.count()}{left}"))
    return 0


def open_cache(data_dir: str, cache_dir: Path) -> LatentCache:
    """Return the latent cache of a data folder that is in cache_dir, or is cache_dir. Raises DataError."""
    found = {}
    for path in (cache_dir / SETTINGS_NAME, *sorted(cache_dir.glob(f"*/{SETTINGS_NAME}"))):
        with suppress(OSError, ValueError):
            settings = json.loads(path.read_text(encoding="utf-8"))
            if {"guidance", *OF_DATASET} <= settings.keys():  # else of features
                found[path.parent] = settings
    if not found:
        raise DataError(cache_dir, "no latent cache is there", TRAIN_FIX)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        problem = f"has {len(found)} latent caches: {names}"
        fix = f"give one, as {next(iter(found))}; its {SETTINGS_NAME} says what it is"
        raise DataError(cache_dir, problem, fix)
    ((folder, settings),) = found.items()
    if settings["resolution"] == "of buckets":
        fix = "pack one that was built without --aspect_buckets"
        raise DataError(folder, "its clips have several sizes, which shards do not know", fix)
    types = settings["guidance"]
    dataset = GuidanceDataset(
        data_dir, list(types), list(types.values()), center_crop=True, sequence_length=1,
        **{name: settings[name] for name in OF_DATASET},
    )  # fmt: skip
    cache = LatentCache(dataset, folder.parent, {})
    if cache.settings["format"] != settings["format"] or folder.name != digest(settings)[:16]:
        raise DataError(folder, "was written by another version of this program", TRAIN_FIX)
    cache.settings, cache.folder = settings, folder
    return cache


def usable(cache: LatentCache, entries: Sequence[CacheEntry]) -> list[CacheEntry]:
    """Return the entries that are there and of today's files. Raises DataError where there are others."""
    outdated = [entry for entry in entries if entry.reason not in (None, "new")]
    if outdated:
        name, reason = cache.sample_ids[outdated[0].index], outdated[0].reason
        more = f" (and {len(outdated) - 1} more)" if len(outdated) > 1 else ""
        raise DataError(cache.folder, f"{name!r} is outdated: {reason}{more}", TRAIN_FIX)
    found = [entry for entry in entries if entry.reason is None]
    if not found:
        raise DataError(cache.folder, f"has no latents of {cache.data_root} as it is now", TRAIN_FIX)
    return found


def planned(cache: LatentCache, entries: Sequence[CacheEntry]) -> list[PlannedSample]:
    """Return the samples to pack, a file each. Its name is a digest of all that decided its content."""
    return [
        PlannedSample(
            number, cache.sample_ids[entry.index], entry.path.name,
            {entry.path.name: entry.path.stat().st_size},
        )
        for number, entry in enumerate(entries)
    ]  # fmt: skip


def num_frames_of(entry: CacheEntry) -> int:
    with opened(entry.path) as file:
        return file.get_slice("frame_seconds").get_shape()[0]


def describe(cache: LatentCache, entries: Sequence[CacheEntry]) -> dict:
    """Return what training asks of a data folder besides its clips, for the index."""
    dataset, indices = cache.dataset, [entry.index for entry in entries]
    statistics = dataset.feature_statistics(indices)
    recipes = {}
    for name in set(RECIPES) & set(dataset.channels):
        with suppress(DataError):  # samples that differ: none is recorded, as in training
            recipes[name] = dataset.recipe(name)
    latents = {
        "settings": cache.settings, "settings_name": SETTINGS_NAME, "folder": cache.folder.name,
        "condition_shapes": dataset.condition_shapes, "frame_rate": dataset.frame_rate,
        "statistics": {name: [part.tolist() for part in parts] for name, parts in statistics.items()},
    }  # fmt: skip
    return {"latents": latents, "recipes": recipes}
