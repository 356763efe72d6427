"""The data of a training run: what is checked, left out, kept for validation, cached."""

import contextlib
import math
import os
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import Dataset

from caching import CachedClips
from caching.latent_shards import LatentShards
from datasets import (
    DataReport,
    GuidanceDataset,
    check_data,
    collate_clips,
    read_report,
    write_report_page,
)
from datasets.checking.kept_facts import KeptFacts
from datasets.data_folder import RECIPES
from datasets.transforms import Size
from shards.clips import ShardClips, ShardSettings, about_shards, has_shards, open_shards
from shards.fetching import is_address
from shards.unpacking import verify_shards
from system.errors import ConfigError, DataError

from .buckets.sizes import bucket_sizes
from .settings.fields import ClipSettings, DataSettings

NOT_CHECKED = ("seed", "buckets", "fit", "center_crop", "random_flip")  # what the data's check does not need
MAX_FAULTS_SHOWN = 10  # at the start of a run; --check_data shows all
HELD_OUT_SHARE = 20  # one video in so many
MAX_HELD_OUT = 8
MIN_VIDEOS_TO_HOLD_OUT = 10


def clip_keywords(settings: ClipSettings, seed: int, *, single_frames: bool) -> dict:
    """Return GuidanceDataset's keywords that follow from the settings; `single_frames`: no clips."""
    sides = settings.resolution
    return {
        "resolution": sides[0] if len(sides) == 1 else tuple(sides),
        "buckets": bucket_sizes(settings.aspect_buckets, sides),
        "sequence_length": 1 if single_frames else settings.sequence_length,
        "frame_stride": 1 if single_frames else settings.frame_stride,
        "music_feature_fps": settings.music_feature_fps,
        "seed": seed,
        "data_format": "image" if single_frames else "video",
        "fit": settings.fit,
        "center_crop": settings.center_crop or settings.cache_latents,  # a cache has one crop
        "random_flip": settings.random_flip,
    }


class DataFolders:
    """The run's training and validation folder: their check, and their clips by `clip_keywords`."""

    unit = "video"  # what a sample is called

    def __init__(self, settings: ClipSettings, output_dir: str, keywords: dict):
        self.settings, self.output_dir, self.clip_keywords = settings, Path(output_dir), keywords

    def dataset(self, data_root: str, accelerator: Accelerator) -> GuidanceDataset:
        """Return the clips of a folder.

        With --skip_invalid the main process reads from the report what to leave out, for all processes.
        """
        left_out, settings = None, self.settings
        if settings.skip_invalid and not has_shards(data_root):  # shards are of valid samples
            found = self.checked(data_root).left_out if accelerator.is_main_process else None
            left_out = broadcast_object_list([found])[0]
        return self.read(data_root, left_out)

    def read(self, data_root: str, left_out: Sequence[tuple[str, str]] | None) -> GuidanceDataset:
        """Return the clips of a folder, which must be whole but for what is left out."""
        settings, types = self.settings, (self.settings.guidance_types, self.settings.guidance_input_channels)
        if not has_shards(data_root):
            kept = self.kept_facts(data_root)
            return GuidanceDataset(data_root, *types, left_out=left_out, kept=kept, **self.clip_keywords)
        shards = self.shard_settings(data_root)
        keywords = {"shards": shards, "skip_invalid": settings.skip_invalid, **self.clip_keywords}
        if "latents" in about_shards(data_root, shards):
            return LatentShards(data_root, dict(zip(*types, strict=True)), **keywords)
        return ShardClips(data_root, *types, **keywords)

    def check_keywords(self) -> dict:
        """Return `check_data`'s keywords that follow from the settings."""
        return {name: value for name, value in self.clip_keywords.items() if name not in NOT_CHECKED}

    def report(self, accelerator: Accelerator) -> bool:
        """Check the folders, print every fault and return whether the data can be trained on.

        The main process checks. A warning stops no run, and with --skip_invalid no faulty sample does.
        """
        verdict = [True]
        if accelerator.is_main_process:
            roots = filter(None, (self.settings.train_data_dir, self.settings.validation_data_dir))
            verdict = [all([self._report_on(root) for root in dict.fromkeys(roots)])]  # one may be the other
        return broadcast_object_list(verdict)[0]

    def _report_on(self, data_root: str) -> bool:
        settings = self.settings
        if has_shards(data_root):
            return self._report_on_shards(data_root)
        report = self.checked(data_root)
        page_path = self.report_path(data_root).with_suffix(".html")
        if settings.check_data:
            print(f"{report.summary()}\nto look at: {page_path}")
            return report.ok
        lines = report.lines(MAX_FAULTS_SHOWN)
        if len(report.faults) > MAX_FAULTS_SHOWN:
            lines.append(f"and {len(report.faults) - MAX_FAULTS_SHOWN} more; --check_data lists all")
        note = " (unchanged since the last check)" if report.reused else ""
        print("\n".join([*lines, f"{report.count()}{note}; to look at: {page_path}"]), file=sys.stderr)
        can_go_on = report.has_usable_samples if settings.skip_invalid else not report.errors
        if settings.skip_invalid and not can_go_on:
            print("no sample is left to train on", file=sys.stderr)
        return can_go_on

    def shard_settings(self, data_root: str) -> ShardSettings:
        """Return where shards of other machines are kept: a folder of this machine is read where it is."""
        settings, cache_dir = self.settings, None
        if settings.shard_cache_dir is not None or is_address(data_root):
            cache_dir = Path(settings.shard_cache_dir or self.output_dir / "shard_cache")
        cache_bytes = int(settings.shard_cache_gb * 2**30)
        return ShardSettings(self.output_dir / "digested_shards", cache_dir, cache_bytes)

    def _report_on_shards(self, data_root: str) -> bool:
        """Say how many samples there are; --check_data reads them all. They were checked before packing."""
        settings = self.settings
        if settings.check_data:
            return verify_shards(data_root, num_workers=settings.num_workers) == 0
        index, _ = open_shards(data_root, self.shard_settings(data_root))
        if "latents" in index.about:
            check_use_of_latents(settings, data_root)
        print(f"{data_root}: {index.count()}", file=sys.stderr)
        return True

    def report_path(self, data_root: str) -> Path:
        """Return where the report on a folder is kept: the validation data has one of its own."""
        is_validation = Path(data_root) != Path(self.settings.train_data_dir)
        return self.output_dir / f"{'validation_' * is_validation}data_report.json"

    def kept_facts(self, data_root: str) -> KeptFacts:
        """Return what the checks of a folder keep of each sample, beside its report."""
        path = self.report_path(data_root)
        return KeptFacts(path.with_name(path.name.replace("data_report.json", "data_facts.sqlite")))

    def checked(self, data_root: str) -> DataReport:
        """Return the report on a folder, and write it beside the page to look at.

        The last one counts where nothing has changed since, except for --check_data. That decodes whole
        videos, as --skip_invalid does, which must know before the training what cannot be read.
        """
        settings, path = self.settings, self.report_path(data_root)
        earlier, kept = None if settings.check_data else read_report(path), self.kept_facts(data_root)
        if settings.check_data:
            kept.clear()
        held_out = settings.validation_data_dir if data_root != settings.validation_data_dir else None
        report = check_data(
            data_root, settings.guidance_types, settings.guidance_input_channels,
            **self.check_keywords(), validation_data_dir=held_out,
            decode_videos=settings.check_data or settings.skip_invalid,
            num_workers=settings.num_workers, earlier=earlier, kept=kept,
        )  # fmt: skip
        page_path = path.with_suffix(".html")
        # The page first: what is killed while it is drawn has no report, and checks again.
        if not report.reused or not page_path.is_file():
            write_report_page(report, page_path, num_workers=settings.num_workers)
        if not report.reused or report.listed != earlier.listed:
            report.write(path)
        return report


def check_use_of_latents(settings: DataSettings, data_root: str) -> None:
    """Raise ConfigError where packed latents are not enough for a run."""
    faults = {
        "give the videos too, to validate on, with --validation_data_dir": settings.validation_data_dir
        is None,
        "validation needs videos: give them with --validation_data_dir": (
            settings.validation_data_dir == data_root
        ),
        "give --cache_latents": not settings.cache_latents,
        "leave out --cache_features, which keeps a file for each sample": settings.cache_features,
        "leave out --dry_run, which looks at a video": settings.dry_run,
    }
    for fix, is_so in faults.items():
        if is_so:
            raise ConfigError(f"--train_data_dir {data_root}: is of latents: {fix}")


@dataclass
class SampleSets:
    """The samples of a run, whatever they are of."""

    train_set: Dataset
    validation_set: Dataset
    train_indices: list[int]
    validation_indices: list[int]
    note: str  # on the validation samples, for the user
    clips: Dataset  # what training reads: the training set, or its clips from the caches
    unit: str  # what a sample is called
    # Of the training samples, where they differ: {index: (height, width)}.
    clip_sizes: dict[int, Size] = field(default_factory=dict, kw_only=True)

    @property
    def largest(self) -> int:
        """Return the index of a training sample whose clips are the largest."""
        return max(self.train_indices, key=lambda index: math.prod(self.clip_sizes.get(index, (0, 0))))

    @property
    def shard_numbers(self) -> np.ndarray | None:
        """Return the shard of each training sample; None where they are files of their own."""
        numbers = getattr(self.train_set, "shard_numbers", None)
        return None if numbers is None else numbers[np.asarray(self.train_indices)]

    def left_out_lines(self) -> list[str]:
        return [f"left out: {sample_id}: {reason}" for sample_id, reason in self.train_set.left_out]


@dataclass
class TrainingData(SampleSets):
    """The clips of a video model's run."""

    clip_keywords: dict
    frame_rate: float  # of the first video, read at the start: later the file may be gone
    music_recipe: str | None = None  # by which the music features were made, where the data record it
    pose_recipe: str | None = None  # the same of the poses

    def all_guidance(self, batch: dict) -> dict[str, Tensor]:
        """Return a batch's conditions {type: [B, F, ...]}, also those that training does not read."""
        if not (isinstance(self.clips, CachedClips) and self.clips.unread):
            return batch["guidance"]
        clips_seen = zip(batch["sample_id"], batch["frame_indices"], strict=True)
        guidance = [{"guidance": self.clips.read_guidance(*one)} for one in clips_seen]
        return collate_clips(guidance)["guidance"]


def open_data(folders: DataFolders, accelerator: Accelerator) -> TrainingData:
    """Return the training clips, and the clips to validate on."""
    sets = open_sets(folders, accelerator)
    if folders.clip_keywords.get("buckets"):
        sets.clip_sizes = {index: sets.train_set.clip_size(index) for index in sets.train_indices}
    recipes = {
        f"{name}_recipe": agreed_recipe(sets.train_set.recipe, name)
        for name in RECIPES if name in folders.settings.guidance_types
    }  # fmt: skip
    frame_rate = sets.train_set.frame_rate
    return TrainingData(**vars(sets), clip_keywords=folders.clip_keywords, frame_rate=frame_rate, **recipes)


def agreed_recipe(recorded: Callable[[str], str | None], type_name: str) -> str | None:
    """Return the recorded recipe of some samples' music or poses; None: not recorded, or they differ.

    The check notes samples that differ. That is no fault: nothing is recorded of the model then.
    """
    with contextlib.suppress(DataError):
        return recorded(type_name)
    return None


def open_sets(folders: DataFolders, accelerator: Accelerator) -> SampleSets:
    """Return the training samples, and those to validate on."""
    settings = folders.settings
    train_set = folders.dataset(settings.train_data_dir, accelerator)
    if settings.validation_data_dir is None:
        kept, held_out, note = split_for_validation(train_set.sample_ids, folders.unit)
        validation_set = train_set
    else:
        validation_set = folders.dataset(settings.validation_data_dir, accelerator)
        kept, held_out = list(range(len(train_set))), list(range(len(validation_set)))
        note = _note_on_validation(settings, len(validation_set), folders.unit)
    return SampleSets(train_set, validation_set, kept, held_out, note, train_set, folders.unit)


def _note_on_validation(settings: DataSettings, num_samples: int, unit: str) -> str:
    note = f"validation on {num_samples} {unit}s of {settings.validation_data_dir}"
    if os.path.realpath(settings.validation_data_dir) == os.path.realpath(settings.train_data_dir):
        note += f", the training {unit}s: give others for numbers that mean something"
    return note


def split_for_validation(sample_ids: Sequence[str], unit: str = "video") -> tuple[list[int], list[int], str]:
    """Return training indices, validation indices and a line for the user, without --validation_data_dir.

    The choice depends on the names alone: it stays when a run is resumed and hardly moves with new videos.
    """
    everything = list(range(len(sample_ids)))
    if len(sample_ids) < MIN_VIDEOS_TO_HOLD_OUT:
        note = (
            f"validation uses training clips: {len(sample_ids)} {unit}(s) are too few to hold one out; "
            "give --validation_data_dir for numbers that mean something"
        )
        return everything, everything, note
    num_held_out = min(MAX_HELD_OUT, max(1, len(sample_ids) // HELD_OUT_SHARE))
    by_name = sorted(
        everything, key=lambda index: (zlib.crc32(sample_ids[index].encode()), sample_ids[index])
    )
    held_out = sorted(by_name[:num_held_out])
    names = ", ".join(sample_ids[index] for index in held_out)
    kept = [index for index in everything if index not in held_out]
    return kept, held_out, f"held out of training for validation: {names}"
