"""One job: an image and guidance in, a video out, encoded, sampled and written in parts."""

import argparse
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets.media.pictures import read_picture
from datasets.transforms import reference_transform
from models.compilation import compile_blocks
from pipelines.champ_pipeline import ChampPipeline
from pipelines.flags import lora_scales, sampling_keywords
from pipelines.guidance_input import Framing, MapSource
from pipelines.loading import add_adapters, autocast, choose_device, frame_size, load_pipeline
from pipelines.schedulers import scheduled
from system.errors import ConfigError, DataError
from system.user_code import import_user_modules

from .driving_video import DrivingVideo
from .guidance import (
    check_recipes,
    check_saving,
    check_trained,
    guidance_sources,
    make_timeline,
    open_tracks,
    read_guidance,
    save_made,
)
from .making import Maker
from .outputs import ClipFile, draw_panel, find_sound, guidance_room, output_paths, refusals, tidy_beside
from .report import OnProgress, Report

FRAMES_AT_A_TIME = 8  # decoded and written


@dataclass(frozen=True)
class Sampled:
    """What a job has made: its videos, the result first; a line about it; the user's notes."""

    paths: list[Path]
    summary: str
    seconds: float  # that it took
    notes: list[str]


@dataclass(frozen=True)
class Clip:
    """What is to be sampled."""

    reference: torch.Tensor  # [3, H, W] in [-1, 1]
    guidance: dict[str, torch.Tensor | MapSource]  # {type: [F, ...]}
    frame_rate: float
    sound: tuple | None  # (file, its second at which the clip begins, seconds of the clip)

    def __len__(self) -> int:
        return next(iter(self.guidance.values())).shape[0]


def sample_video(
    arguments: argparse.Namespace, *, pipeline: ChampPipeline | None = None,
    on_progress: OnProgress | None = None,
) -> Sampled:  # fmt: skip
    """Write the video of one set of flags, of `sample_guidance.parse_arguments`. Raises UserError.

    pipeline: the one of --model_path, where it is loaded (and compiled, if so wished) already.
    on_progress(text, done, total) is told what is being done, and may raise Cancelled; then, and after every
    other error, nothing half-written stays.
    """
    # Check what is cheap to check before a model is loaded.
    started, report = time.monotonic(), Report()
    report.on_progress = on_progress or report.on_progress
    has_panel, may_replace = arguments.panel, arguments.overwrite
    used = {"audio": arguments.audio, "driving_video": arguments.driving_video, "song": arguments.song}
    paths = output_paths(arguments.output, used, has_panel=has_panel, may_replace=may_replace)
    for path in paths:
        tidy_beside(path, report.note)
    check_saving(arguments.save_guidance, paths[0].stem, may_replace=may_replace)
    sources, optional = guidance_sources(arguments)
    device = choose_device(arguments.device, arguments.mixed_precision)
    image, notes = read_picture(arguments.reference_image)  # uint8 [H, W, 3]
    for note in notes:
        report.note(f"{arguments.reference_image}: {note}")

    # Model and guidance.
    if pipeline is None:
        import_user_modules(arguments.guidance_modules)
        pipeline = load_pipeline(arguments.model_path)
        add_adapters(pipeline, arguments.model_path, lora_scales(arguments))
        if arguments.compile:
            compile_blocks([pipeline.unet], report.note, training=False)
    sources = check_trained(sources, pipeline, optional)
    check_settings(arguments, pipeline, sources)
    if arguments.enable_xformers_memory_efficient_attention:
        pipeline.enable_xformers_memory_efficient_attention()
    pipeline.to(device)
    clip = read_clip(arguments, pipeline, sources, image, report)

    # Sample and write.
    with autocast(device, arguments.mixed_precision):
        write_clip(paths, clip, sample_parts(arguments, pipeline, clip, report), report)
    height, width = clip.reference.shape[1:]
    made = f"{len(clip)} frames of {height}x{width}, {clip.frame_rate:g} per second"
    return Sampled(paths, made, time.monotonic() - started, report.notes)


def check_settings(arguments: argparse.Namespace, pipeline: ChampPipeline, sources: dict[str, Path]) -> None:
    """Raise UserError for what the pipeline would refuse, before poses are sought for minutes."""
    for name, _ in arguments.guidance_scales:
        if name not in sources:
            given = ", ".join(sources)
            raise ConfigError(f"--guidance_scales {name}: is none of the guidance that is given ({given})")
    pipeline.grids(1, arguments.context_frames, arguments.context_overlap)
    with scheduled(pipeline, arguments.scheduler):
        pass


def read_clip(
    arguments: argparse.Namespace, pipeline: ChampPipeline, sources: dict, image: np.ndarray, report: Report
) -> Clip:
    """Return what the pipeline is given: guidance of `sources`, aligned in time and fitted to the frames."""
    size, fit = frame_size(arguments.resolution, pipeline), arguments.fit or pipeline.config.fit
    framing = Framing(size, arguments.pose_size and tuple(arguments.pose_size[::-1]), image.shape[:2], fit)
    times = (arguments.frame_rate, arguments.start_frame, arguments.frame_stride, arguments.num_frames)
    timeline = make_timeline(pipeline.config, *times)
    check_recipes(arguments, sources, pipeline.config, report)
    maker = Maker(arguments, pipeline, image, timeline.frame_rate, report)
    video = maker.make(set(sources))
    with guidance_room(arguments.save_guidance, arguments.output) as folder:
        facts = maker.facts | {"notes": report.notes} if arguments.save_guidance else None
        made = save_made(folder, Path(arguments.output).stem, maker.made, facts)
        tracks = open_tracks(sources | made, arguments.music_feature_fps)
        try:
            guidance = read_guidance(pipeline, tracks, timeline, framing, report)
        except DataError as error:  # what is made may be gone when the user reads this
            given = {str(path): sources[name] for name, path in made.items()}
            raise DataError(given.get(error.path, error.path), error.problem, error.fix) from error
    seconds = next(iter(guidance.values())).shape[0] / timeline.clip_frame_rate
    sound_path, start_seconds = choose_sound(arguments, video)
    sound = find_sound(sound_path, start_seconds + timeline.start_seconds, seconds)
    return Clip(reference_transform(image, size, fit), guidance, timeline.clip_frame_rate, sound)


def choose_sound(arguments: argparse.Namespace, video: DrivingVideo | None) -> tuple[str | None, float]:
    """Return (the file whose sound the video has, its second at which guidance begins); None: silent."""
    if arguments.audio is not None:
        return arguments.audio, 0.0
    if arguments.song is not None:
        return arguments.song, arguments.start_seconds if video is None else 0.0
    if video is not None and video.reader.has_audio:
        return arguments.driving_video, video.start_seconds
    return None, 0.0


def sample_parts(
    arguments: argparse.Namespace, pipeline: ChampPipeline, clip: Clip, report: Report
) -> Iterator[np.ndarray]:
    """Yield the frames of the sampled clip in parts, uint8 [n, H, W, 3] each."""
    num_steps, (height, width) = arguments.num_inference_steps, clip.reference.shape[1:]

    def on_step_end(pipeline: ChampPipeline, step: int, timestep: torch.Tensor, tensors: dict) -> dict:
        report.on_progress("sampling", step + 1, num_steps)
        return {}

    report.on_progress("sampling", 0, num_steps)
    pipeline.set_progress_bar_config(disable=True)
    with scheduled(pipeline, arguments.scheduler):
        latents = pipeline(
            clip.reference, clip.guidance, height=height, width=width,
            generator=torch.Generator().manual_seed(arguments.seed), **sampling_keywords(arguments),
            output_type="latent", callback_on_step_end=on_step_end,
        ).frames  # fmt: skip
    yield from pipeline.decode_parts(latents, FRAMES_AT_A_TIME)


def write_clip(paths: list[Path], clip: Clip, parts: Iterator[np.ndarray], report: Report) -> None:
    """Write the result to the first path, its panel to the second if there is one; all of them or none."""
    num_done = 0
    with refusals(paths[0], "--output"), contextlib.ExitStack() as stack:
        files = [stack.enter_context(ClipFile(path, clip.frame_rate, clip.sound)) for path in paths]
        for frames in parts:
            report.on_progress("writing", num_done, len(clip))
            columns = [frames]
            if len(files) > 1:
                columns.append(draw_panel(clip.reference, clip.guidance, frames, num_done))
            for file, pixels in zip(files, columns, strict=True):
                file.write(pixels)
            num_done += len(frames)
        report.on_progress("writing", num_done, len(clip))
