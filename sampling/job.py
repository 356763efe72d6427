"""One job: an image and guidance in, a video out."""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from datasets import write_video
from datasets.media.pictures import read_picture
from datasets.transforms import reference_transform
from pipelines.champ_pipeline import ChampPipeline
from pipelines.guidance_input import Framing
from pipelines.loading import autocast, choose_device, frame_size, load_pipeline
from system.user_code import import_user_modules

from .guidance import (
    check_trained,
    guidance_sources,
    make_guidance,
    make_timeline,
    open_tracks,
    read_guidance,
)
from .outputs import draw_panel, find_sound, output_paths, room_beside


@dataclass
class Sampled:
    """What a job has made: its videos, the result first; a line about it; the user's notes."""

    paths: list[Path]
    summary: str
    seconds: float  # that it took
    notes: list[str] = field(default_factory=list)


@dataclass
class Clip:
    """What is to be sampled."""

    reference: torch.Tensor  # [3, H, W] in [-1, 1]
    guidance: dict[str, torch.Tensor]  # {type: [F, ...]}
    frame_rate: float
    sound: tuple  # (file, its second at which the clip begins), or nothing


def sample_video(
    arguments: argparse.Namespace, *, pipeline: ChampPipeline | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Sampled:  # fmt: skip
    """Write the video of one set of flags, of `sample_guidance.parse_arguments`. Raises UserError.

    pipeline: the one of --model_path, where it is loaded already. on_progress(text, done, total) is told what
    is being done, and may raise Cancelled; then, and after every other error, nothing half-written stays.
    """
    # Check what is cheap to check before a model is loaded.
    started = time.monotonic()
    output_path, panel_path = output_paths(
        arguments.output, arguments.audio, has_panel=arguments.panel, may_replace=arguments.overwrite
    )
    sources = guidance_sources(arguments)
    device = choose_device(arguments.device, arguments.mixed_precision)
    image, notes = read_picture(arguments.reference_image)  # uint8 [H, W, 3]
    for note in notes:
        print(f"{arguments.reference_image}: {note}")

    # Model and guidance.
    if pipeline is None:
        import_user_modules(arguments.guidance_modules)
        pipeline = load_pipeline(arguments.model_path)
    check_trained(sources, pipeline, hears=("music",) if arguments.music_to_pose_path else ())
    if arguments.enable_xformers_memory_efficient_attention:
        pipeline.enable_xformers_memory_efficient_attention()
    pipeline.to(device)
    with room_beside(output_path) as folder:
        clip = read_clip(arguments, pipeline, sources, image, folder)

    # Sample.
    height, width = clip.reference.shape[1:]
    with autocast(device, arguments.mixed_precision):
        frames = pipeline(
            clip.reference, clip.guidance, height=height, width=width,
            num_inference_steps=arguments.num_inference_steps, guidance_scale=arguments.guidance_scale,
            generator=torch.Generator().manual_seed(arguments.seed),
            context_frames=arguments.context_frames, context_overlap=arguments.context_overlap,
        ).frames[0]  # fmt: skip
    frames = np.round(255 * frames).astype(np.uint8)  # [F, H, W, 3]

    # Write.
    write_video(output_path, frames, clip.frame_rate, *clip.sound)
    if panel_path is not None:
        panel = draw_panel(clip.reference, clip.guidance, frames)
        write_video(panel_path, panel, clip.frame_rate, *clip.sound)
    made = f"{len(frames)} frames of {height}x{width}, {clip.frame_rate:g} per second"
    return Sampled([*filter(None, (output_path, panel_path))], made, time.monotonic() - started)


def read_clip(
    arguments: argparse.Namespace, pipeline: ChampPipeline, sources: dict, image: np.ndarray, folder: Path
) -> Clip:
    """Return what the pipeline is given: guidance of `sources`, aligned in time and fitted to the frames.

    folder: for what is made on the way.
    """
    size, fit = frame_size(arguments.resolution, pipeline), arguments.fit or pipeline.config.fit
    framing = Framing(size, arguments.pose_size and tuple(arguments.pose_size[::-1]), image.shape[:2], fit)
    times = (arguments.frame_rate, arguments.start_frame, arguments.frame_stride, arguments.num_frames)
    timeline = make_timeline(pipeline.config, *times)
    sources = sources | make_guidance(arguments, pipeline, timeline.frame_rate, image, folder)
    tracks = open_tracks(sources, arguments.music_feature_fps)
    guidance = read_guidance(pipeline, tracks, timeline, framing)
    clip_seconds = len(next(iter(guidance.values()))) / timeline.clip_frame_rate
    sound = find_sound(arguments.audio or arguments.song, clip_seconds, timeline.start_seconds) or ()
    return Clip(reference_transform(image, size, fit), guidance, timeline.clip_frame_rate, sound[:2])
