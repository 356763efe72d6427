"""Validation of a run on fixed clips: numbers, and a sampled clip to look at.

Clips, noise and timesteps are the same at every validation, in every run and for any number of processes.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets import DataError, GuidanceDataset, VideoReader, collate_clips, write_video
from datasets.body.regions import LEAST_CONFIDENCE, LEAST_POINTS
from evaluation.guidance_gaps import (
    ELSEWHERE,
    VALIDATION_SEED,
    EncodedClip,
    encode_clip,
    region_weights,
)
from evaluation.validation_metrics import CLIP_METRICS, ValidationRun, measure_validation
from models import FrozenEncoders
from pipelines.champ_pipeline import ChampPipeline
from pipelines.panels import draw_guidance, frames_to_uint8, gif_bytes, make_panel
from training.objective import DiffusionObjective
from training.run_log import RunLog
from training.settings.fields import RunSettings

from .chosen_metrics import clip_metrics
from .guidance_watch import GuidanceWatch


def choose_clips(dataset, indices: Sequence[int], num_clips: int) -> list[tuple[int, int]]:
    """Return (index, start frame) of `num_clips` fixed clips, over many videos, far apart in each.

    Fewer than asked when the videos are short; the middle of a video where one clip is taken from it.
    """
    span = dataset.clip_span
    step = max(1, len(indices) / num_clips)
    videos = [indices[int(place * step)] for place in range(min(num_clips, len(indices)))]
    per_video = -(-num_clips // len(videos))
    clips = []
    for turn in range(per_video):
        for index in videos:
            last_start = max(0, dataset.num_frames(index) - span)
            start = last_start // 2 if per_video == 1 else last_start * turn // (per_video - 1)
            if (index, start) not in clips and len(clips) < num_clips:
                clips.append((index, start))
    return clips


class PanelValidator(ABC):
    """The fixed clips of a run: what is measured of them is logged, said and drawn."""

    said = tuple(CLIP_METRICS)  # of the scalars, beside losses and gaps

    def __init__(self, settings: RunSettings, shown: dict, video_path: Path | None):
        self.settings, self.shown = settings, shown  # the clip that is drawn, with sample_id, frame_seconds
        self.video_path = video_path  # with its sound
        self.watch = GuidanceWatch()

    @abstractmethod
    def measure(self, model) -> tuple[dict[str, float], np.ndarray]:
        """Return the scalars, and a panel of the shown clip, uint8 [F, H, W, 3]."""

    def run(self, model, log: RunLog, step: int) -> dict[str, float]:
        """Measure, sample, draw and log; return the scalars."""
        model.eval()
        scalars, panel = self.measure(model)
        log.scalars(scalars, step)
        for line in (summary_line(scalars, step, self.said), *self.watch.look(scalars)):
            log.say(line)
        self.show(panel, Path(self.settings.output_dir) / "samples" / f"step-{step:06d}", log, step)
        model.train()
        return scalars

    def show(self, panel, folder: Path, log: RunLog, step: int) -> None:
        """Write the panel as an mp4 with the music (one frame: an image), and to TensorBoard as a GIF."""
        seconds = torch.as_tensor(self.shown["frame_seconds"]).tolist()
        frame_rate = 1.0 if len(panel) == 1 else (len(seconds) - 1) / (seconds[-1] - seconds[0])
        try:
            note = self.save_panel(panel, folder, seconds)
        except OSError as error:  # a full disk, say: no reason to end a training
            note = f"warning: no image in {folder}: {error.strerror or error}"
        if note:
            log.say(note)
        log.moving_image("validation/panel", gif_bytes(panel, frame_rate), panel.shape[1:3], step)

    def save_panel(self, panel, folder: Path, seconds: Sequence[float]) -> str | None:
        """Write the panel into `folder`; return what to tell the user, if anything. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        name = self.shown["sample_id"]
        if len(panel) == 1:
            return Image.fromarray(panel[0]).save(folder / f"{name}.png")
        return save_video(folder / f"{name}.mp4", panel, seconds, self.video_path, seconds[0])


class Validator(PanelValidator):
    """The fixed clips of a video model's run, encoded once."""

    def __init__(
        self, dataset: GuidanceDataset, clips: Sequence[tuple[int, int]], frozen: FrozenEncoders,
        objective: DiffusionObjective, *, settings: RunSettings, device: torch.device,
    ):  # fmt: skip
        items = [dataset.read_clip(index, start) for index, start in clips]
        # The first is sampled; the others are where a metric asks for it.
        super().__init__(settings, items[0], dataset.video_path(clips[0][0]))
        self.frozen, self.objective, self.device = frozen, objective, device
        self.clip_metrics = clip_metrics(settings)
        self.others = items[1:] if self.clip_metrics else []
        self.encoded, self.training_clips = self.encode(items), []
        self.regions = list(objective.region_weights)
        self.said = (*CLIP_METRICS, *(f"val_loss_region/{name}" for name in (*self.regions, ELSEWHERE)))

    def encode(self, items: Sequence[dict]) -> list[EncodedClip]:
        """Return clips of a dataset as the model takes them."""
        frozen, device = self.frozen, self.device
        with frozen.on(device):  # with a latent cache they are elsewhere the rest of the time
            return [encode_clip(frozen, collate_clips([item]), device) for item in items]

    def unseen_regions(self) -> list[str]:
        """Return a line for each weighted region that no clip shows: those of training may not, either."""
        seen = set().union(*(region_weights(clip, self.regions) for clip in self.encoded))
        asked = f"{LEAST_POINTS} key points of confidence {LEAST_CONFIDENCE} or more in a frame"
        return [
            f"warning: --region_weights {name}: no validation clip shows the {name} ({asked}); the "
            "weight has no effect on clips that do not"
            for name in self.regions if f"val_loss_region/{name}" not in seen
        ]  # fmt: skip

    def measure(self, model) -> tuple[dict[str, float], np.ndarray]:
        run = ValidationRun(
            model, self.objective, self.encoded, self.settings.train_batch_size, self.shown,
            sample=functools.partial(self.sample, model), clip_metrics=self.clip_metrics, others=self.others,
            regions=self.regions, training_clips=self.training_clips,
        )  # fmt: skip
        scalars = measure_validation(run)
        return scalars, self.panel(run.prediction)

    def sample(self, model, clip: dict) -> Tensor:
        """Return a clip of the dataset as the model samples it, float [F, 3, H, W] in [-1, 1]."""
        pipeline = ChampPipeline.from_parts(model, self.frozen, self.objective.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        height, width = clip["frames"].shape[-2:]
        with self.frozen.on(self.device):
            frames = pipeline(
                clip["reference_image"][None],
                {name: condition[None] for name, condition in clip["guidance"].items()},
                height=height, width=width, num_inference_steps=self.settings.num_inference_steps,
                guidance_scale=self.settings.guidance_scale,
                generator=torch.Generator().manual_seed(VALIDATION_SEED), output_type="pt",
            ).frames[0]  # fmt: skip
        return frames.float().cpu() * 2 - 1

    def panel(self, prediction: Tensor):
        """Return [reference | guidance | ground truth | prediction], uint8 [F, H, W_total, 3]."""
        size = tuple(self.shown["frames"].shape[-2:])
        guidance = self.shown["guidance"]
        columns = [
            frames_to_uint8(self.shown["reference_image"][None])[0],
            *(draw_guidance(condition, size, name) for name, condition in guidance.items()),
            frames_to_uint8(self.shown["frames"]),
            frames_to_uint8(prediction),
        ]
        return make_panel(columns, ["reference", *guidance, "ground truth", "prediction"])


def summary_line(scalars: dict[str, float], step: int, said: Sequence[str] = ()) -> str:
    """Return the console's line of a validation: the loss, the scalars named in `said`, the gaps."""
    gaps = [
        f"{name.removeprefix('guidance_')} {value:+.0%}"
        for name, value in scalars.items()
        if name.startswith("guidance_gap")
    ]
    metrics = [f"{name} {value:.4g}" for name, value in scalars.items() if name in said]
    return ", ".join([f"step {step}: val_loss {scalars['val_loss']:.4f}", *metrics, *gaps])


def save_video(
    path: Path, frames, frame_seconds, video_path: Path | None, start_seconds: float
) -> str | None:
    """Write frames, shown at `frame_seconds`, as an mp4 with the video's sound from `start_seconds` on.

    Return a line for the user when there is none to be had: that is no reason to end a training.
    """
    try:
        audio_path = video_path if video_path is not None and VideoReader(video_path).has_audio else None
        write_video(path, frames, frame_seconds, audio_path, start_seconds)
    except DataError as error:
        write_video(path, frames, frame_seconds)
        return f"{path} is without sound: {error}"
    return None
