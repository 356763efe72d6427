"""The data of a training run: what is checked, left out, kept for validation, cached."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from caching import CachedClips, FeatureCache, LatentCache
from caching.building import CacheEncoder, build_cache
from caching.feature_encoding import LeftAside, unused_modules
from datasets import (
    DataError,
    DataReport,
    GuidanceDataset,
    check_data,
    collate_clips,
    read_report,
    write_report_page,
)
from training import building
from training.execution.sharding import is_sharded, whole_weights
from training.settings.fields import TrainingArguments

NOT_CHECKED = ("seed", "fit", "center_crop", "random_flip")  # settings that the data's check does not need
MAX_FAULTS_SHOWN = 10  # at the start of a run; --check_data shows all


def make_dataset(arguments: TrainingArguments, data_root: str, accelerator: Accelerator) -> GuidanceDataset:
    """Return the dataset of a folder under the run's settings.

    With --skip_invalid the main process knows from the report what to leave out, and tells the others.
    """
    left_out = None
    if arguments.skip_invalid:
        found = checked_data(arguments, data_root).left_out if accelerator.is_main_process else None
        left_out = broadcast_object_list([found])[0]
    return GuidanceDataset(
        data_root, arguments.guidance_types, arguments.guidance_input_channels, left_out=left_out,
        **building.dataset_settings(arguments),
    )  # fmt: skip


def cached_clips(
    arguments: TrainingArguments, train_set: GuidanceDataset, indices: list[int], frozen,
    accelerator: Accelerator, say: Callable,
) -> CachedClips:  # fmt: skip
    """Return the training clips from the latent cache, which is built first where it is not complete."""
    cache = LatentCache(train_set, building.cache_dir(arguments), building.encoded_by(arguments, frozen))
    if not arguments.center_crop and arguments.fit != "pad":
        say("--cache_latents: every clip of a video is cropped alike, as with --center_crop")
    encoder = CacheEncoder(
        frozen, accelerator.device, batch_size=arguments.train_batch_size,
        sequence_length=train_set.sequence_length,
    )  # fmt: skip
    num_bytes = functools.partial(cache.num_bytes, latent_bytes=building.latent_bytes(arguments, frozen))
    paths = build_cache(
        cache, indices, encoder, accelerator, num_bytes=num_bytes, user_errors=(DataError,), say=say
    )
    return CachedClips(
        paths, train_set.sample_ids, sequence_length=train_set.sequence_length,
        frame_stride=train_set.frame_stride, seed=arguments.seed,
    )  # fmt: skip


def add_features(
    arguments: TrainingArguments, clips: CachedClips, model: nn.Module, frozen, accelerator: Accelerator,
    say: Callable,
) -> AbstractContextManager:  # fmt: skip
    """Let the clips bring what the model's frozen parts make of them; it is built first where it is missing.

    Return what brings the parts that training has no use for back to the device: validation needs them.
    """
    encoder = building.feature_encoder(arguments, model, frozen, accelerator)
    with whole_weights(model):
        cache = FeatureCache(
            clips.paths, building.cache_dir(arguments), building.features_made_by(arguments, model)
        )
        num_bytes = functools.partial(cache.num_bytes, encoder=encoder)
        paths = build_cache(
            cache, list(clips.paths), encoder, accelerator, num_bytes=num_bytes, user_errors=(DataError,),
            say=say,
        )  # fmt: skip
    clips.add_features(paths, unread_types=[] if arguments.loss else encoder.guidance_types)
    if is_sharded(model):  # each process has its share of the weights, and no more
        return contextlib.nullcontext()
    return LeftAside(unused_modules(model, encoder.guidance_types), accelerator.device)


def all_guidance(clips, batch: dict) -> dict[str, Tensor]:
    """Return a batch's conditions {type: [B, F, ...]}, also those that training does not read."""
    if not (isinstance(clips, CachedClips) and clips.unread):
        return batch["guidance"]
    clips_seen = zip(batch["sample_id"], batch["frame_indices"], strict=True)
    guidance = [{"guidance": clips.read_guidance(*one)} for one in clips_seen]
    return collate_clips(guidance)["guidance"]


def cache_bytes(
    arguments: TrainingArguments, train_set: GuidanceDataset, indices: list[int], frozen, model: nn.Module,
    accelerator: Accelerator,
) -> dict[str, int]:  # fmt: skip
    """Return about what each cache takes, {its title: bytes}."""
    if not arguments.cache_latents:
        return {}
    num_frames = sum(map(train_set.num_frames, indices))
    cache = LatentCache(train_set, building.cache_dir(arguments), {})
    latent_bytes = building.latent_bytes(arguments, frozen)
    sizes = {cache.title: cache.num_bytes(num_frames, len(indices), latent_bytes)}
    if arguments.cache_features:
        encoder = building.feature_encoder(arguments, model, frozen, accelerator)
        features = FeatureCache({}, building.cache_dir(arguments), {})
        sizes[features.title] = features.num_bytes(num_frames, len(indices), encoder)
    return sizes


def split_data(arguments: TrainingArguments, train_set: GuidanceDataset, accelerator: Accelerator):
    """Return the validation dataset, the training and the validation indices, and what to tell the user."""
    everything = list(range(len(train_set)))
    if arguments.validation_data_dir is None:
        kept, held_out, note = building.split_for_validation(train_set.sample_ids)
        return train_set, kept, held_out, note
    validation_set = make_dataset(arguments, arguments.validation_data_dir, accelerator)
    note = f"validation on {len(validation_set)} videos of {arguments.validation_data_dir}"
    if os.path.realpath(arguments.validation_data_dir) == os.path.realpath(arguments.train_data_dir):
        note += ", the training videos: give others for numbers that mean something"
    return validation_set, everything, list(range(len(validation_set))), note


def report_on_data(arguments: TrainingArguments, accelerator: Accelerator) -> bool:
    """Check the data, tell the user of every fault and return whether the data can be trained on.

    The main process checks. A warning stops no run, and with --skip_invalid no faulty sample does.
    """
    verdict = [True]
    if accelerator.is_main_process:
        roots = filter(None, (arguments.train_data_dir, arguments.validation_data_dir))
        for data_root in dict.fromkeys(roots):  # the one may be the other
            report = checked_data(arguments, data_root)
            page_path = report_path(arguments, data_root).with_suffix(".html")
            if arguments.check_data:
                print(f"{report.summary()}\nto look at: {page_path}")
                verdict[0] &= report.ok
                continue
            lines = report.lines(MAX_FAULTS_SHOWN)
            if len(report.faults) > MAX_FAULTS_SHOWN:
                lines.append(f"and {len(report.faults) - MAX_FAULTS_SHOWN} more; --check_data lists all")
            note = " (unchanged since the last check)" if report.reused else ""
            print("\n".join([*lines, f"{report.count()}{note}; to look at: {page_path}"]), file=sys.stderr)
            can_go_on = report.has_usable_samples if arguments.skip_invalid else not report.errors
            if arguments.skip_invalid and not can_go_on:
                print("no sample is left to train on", file=sys.stderr)
            verdict[0] &= can_go_on
    return broadcast_object_list(verdict)[0]


def report_path(arguments: TrainingArguments, data_root: str) -> Path:
    """Return where the report on a folder is kept: the validation data has one of its own."""
    is_validation = Path(data_root) != Path(arguments.train_data_dir)
    return Path(arguments.output_dir) / f"{'validation_' * is_validation}data_report.json"


def checked_data(arguments: TrainingArguments, data_root: str) -> DataReport:
    """Return the report on a folder, and write it beside the page to look at.

    The last one counts where nothing has changed since, except for --check_data. That decodes whole videos,
    as --skip_invalid does, which must know before the training what cannot be read.
    """
    path = report_path(arguments, data_root)
    held_out = arguments.validation_data_dir if data_root != arguments.validation_data_dir else None
    settings = building.dataset_settings(arguments)
    report = check_data(
        data_root, arguments.guidance_types, arguments.guidance_input_channels,
        **{name: settings[name] for name in settings if name not in NOT_CHECKED},
        validation_data_dir=held_out, decode_videos=arguments.check_data or arguments.skip_invalid,
        num_workers=arguments.num_workers, earlier=None if arguments.check_data else read_report(path),
    )  # fmt: skip
    page_path = path.with_suffix(".html")
    # The page first: what is killed while it is drawn has no report, and checks again.
    if not report.reused or not page_path.is_file():
        write_report_page(report, page_path, num_workers=arguments.num_workers)
    if not report.reused:
        report.write(path)
    return report
