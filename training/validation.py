"""Numbers and pictures on fixed clips: the loss, whether each guidance is used, and a sampled video.

Clips, noise and timesteps are the same at every validation, in every run and for any number of processes.
The guidance gap of a type is (loss with that type taken from another clip - loss) / loss: near zero means
that the model does not listen to it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pipelines.champ_pipeline import ChampPipeline
from pipelines.guidance_drawing import draw_guidance, frames_to_uint8, gif_bytes, make_panel

from .batches import encode_batch, move_batch
from .objective import DiffusionObjective
from .run_log import RunLog

TIMESTEPS = (125, 375, 625, 875)  # the middles of four equal bins
VALIDATION_SEED = 20240321


@dataclass
class EncodedClip:
    """A clip as the model takes it, B = 1."""

    sample_id: str
    latents: Tensor  # [1, F, 4, h, w]
    reference_latents: Tensor  # [1, 4, h, w]
    image_tokens: Tensor  # [1, L, D]
    guidance: dict[str, Tensor]  # {type: [1, F, ...]}


def choose_clips(dataset, indices: Sequence[int], num_clips: int) -> list[tuple[int, int]]:
    """Return (index, start frame) of `num_clips` fixed clips, over many videos, far apart in each.

    Fewer than asked when the videos are short; the middle of a video where one clip is taken from it.
    """
    span = 1 + (dataset.sequence_length - 1) * dataset.frame_stride
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


def encode_clip(frozen, batch: dict, device: torch.device) -> EncodedClip:
    """Return a batch dict of one clip as the model takes it."""
    latents, conditions = encode_batch(frozen, move_batch(batch, device), VALIDATION_SEED)
    return EncodedClip(batch["sample_id"][0], latents, **conditions)


def evaluate_guidance_gaps(
    model,
    frozen,
    objective: DiffusionObjective,
    clips: Sequence[dict],
    *,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = VALIDATION_SEED,
) -> dict[str, float]:
    """Return val_loss, val_loss/BIN, guidance_gap/TYPE, guidance_gap/reference, guidance_gap_alone/TYPE.

    `clips` are batch dicts of one clip each, as the dataset's collate makes them; `objective` only scores,
    its dropouts are not applied. All losses of a clip share noise and timesteps.
    """
    device = next(model.parameters()).device
    encoded = [encode_clip(frozen, batch, device) for batch in clips]
    return measure(model, objective, encoded, timesteps=timesteps, seed=seed)


@torch.no_grad()
def measure(
    model,
    objective: DiffusionObjective,
    clips: Sequence[EncodedClip],
    *,
    timesteps: Sequence[int] = TIMESTEPS,
    seed: int = VALIDATION_SEED,
) -> dict[str, float]:
    """Return what `evaluate_guidance_gaps` does, for clips that are encoded already."""
    losses = defaultdict(list)  # of a variant or a timestep bin, over clips and timesteps
    norms = defaultdict(list)
    for place, clip in enumerate(clips):
        variants, feature_norms = _variants(model, clip, _partner(clips, place))
        for name, norm in feature_norms.items():
            norms[name].append(norm)
        for timestep in timesteps:
            draw = objective.draw(clip.latents, [(seed, place, timestep)])
            at = torch.full_like(draw.timesteps, timestep)
            noisy = objective.add_noise(clip.latents, draw.noise, at)
            target = objective.target(clip.latents, draw.noise, at)
            for name, (bank, tokens, features) in variants.items():
                loss = objective.sample_losses(
                    model.denoise(noisy, at, tokens, bank, features), target, at
                ).item()
                losses[name].append(loss)
                if name == "true":
                    losses[_bin_name(timestep, timesteps)].append(loss)
    means = {name: sum(values) / len(values) for name, values in losses.items()}
    return {**_as_scalars(means), **{name: sum(values) / len(values) for name, values in norms.items()}}


def _partner(clips: Sequence[EncodedClip], place: int) -> EncodedClip | None:
    """Return the next clip of another video, else the next one of the same video, else None."""
    others = [clips[(place + offset) % len(clips)] for offset in range(1, len(clips))]
    of_other_videos = [clip for clip in others if clip.sample_id != clips[place].sample_id]
    return next(iter(of_other_videos or others), None)


def _variants(model, clip: EncodedClip, partner: EncodedClip | None) -> tuple[dict, dict[str, float]]:
    """Return {variant: (bank, image tokens, features)} and {guidance_norm/type: root mean square}."""
    size = clip.latents.shape[-2:]
    bank = model.encode_reference(clip.reference_latents, clip.image_tokens)
    variants = {"true": (bank, clip.image_tokens, model.encode_guidance(clip.guidance, size))}
    norms = {}
    for name, condition in clip.guidance.items():
        alone = model.encode_guidance({name: condition}, size)
        feature = alone.vector if alone.spatial is None else alone.spatial
        norms[f"guidance_norm/{name}"] = feature.float().square().mean().sqrt().item()
        if partner is None:
            continue
        swapped = {**clip.guidance, name: partner.guidance[name]}
        variants[f"swapped/{name}"] = (bank, clip.image_tokens, model.encode_guidance(swapped, size))
        if len(clip.guidance) > 1:
            alone_swapped = model.encode_guidance({name: partner.guidance[name]}, size)
            variants[f"alone/{name}"] = (bank, clip.image_tokens, alone)
            variants[f"alone_swapped/{name}"] = (bank, clip.image_tokens, alone_swapped)
    if partner is not None and partner.sample_id != clip.sample_id:
        other_bank = model.encode_reference(partner.reference_latents, partner.image_tokens)
        variants["swapped/reference"] = (other_bank, partner.image_tokens, variants["true"][2])
    return variants, norms


def _bin_name(timestep: int, timesteps: Sequence[int]) -> str:
    width = 1000 // len(timesteps)
    first = timestep // width * width
    return f"bin/t{first:03d}-{first + width - 1:03d}"


def _as_scalars(means: dict[str, float]) -> dict[str, float]:
    """Return TensorBoard's names: losses as they are, gaps relative to the loss they started from."""
    scalars = {"val_loss": means["true"]}
    for name, mean in means.items():
        kind, _, what = name.partition("/")
        if kind == "bin":
            scalars[f"val_loss/{what}"] = mean
        elif kind == "swapped":
            scalars[f"guidance_gap/{what}"] = (mean - means["true"]) / means["true"]
        elif kind == "alone_swapped":
            scalars[f"guidance_gap_alone/{what}"] = (mean - means[f"alone/{what}"]) / means[f"alone/{what}"]
    return scalars


class Validator:
    """The fixed clips of a run, encoded once, and what is measured and drawn of them.

    `save_video(path, frames, frame_rate, video_path, start_seconds)` writes frames with the video's sound.
    """

    def __init__(
        self,
        dataset,
        clips: Sequence[tuple[int, int]],
        collate: Callable,
        frozen,
        objective: DiffusionObjective,
        *,
        device: torch.device,
        save_video: Callable,
    ):
        self.frozen = frozen
        self.objective = objective
        self.device = device
        self.save_video = save_video
        items = [dataset.read_clip(index, start) for index, start in clips]
        self.shown = items[0]  # the clip that is sampled
        self.video_path = dataset.video_path(clips[0][0])
        self.encoded = [encode_clip(frozen, collate([item]), device) for item in items]

    def run(
        self,
        model,
        log: RunLog,
        samples_dir: Path,
        step: int,
        *,
        num_inference_steps: int,
        guidance_scale: float,
    ) -> dict[str, float]:
        """Measure, sample, draw and log; return the scalars."""
        model.eval()
        scalars = measure(model, self.objective, self.encoded)
        log.scalars(scalars, step)
        log.say(summary_line(scalars, step))
        prediction = self.sample(
            model, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale
        )
        self.show(self.panel(prediction), samples_dir / f"step-{step:06d}", log, step)
        model.train()
        return scalars

    def sample(self, model, *, num_inference_steps: int, guidance_scale: float) -> Tensor:
        """Return the shown clip as the model makes it, float [F, 3, H, W] in [-1, 1]."""
        pipeline = ChampPipeline.from_parts(model, self.frozen, self.objective.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        height, width = self.shown["frames"].shape[-2:]
        frames = pipeline(
            self.shown["reference_image"][None],
            {name: condition[None] for name, condition in self.shown["guidance"].items()},
            height=height, width=width,
            num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(VALIDATION_SEED), output_type="pt",
        ).frames[0]  # fmt: skip
        return frames.float().cpu() * 2 - 1

    def panel(self, prediction: Tensor):
        """Return [reference | guidance | ground truth | prediction], uint8 [F, H, W_total, 3]."""
        size = tuple(self.shown["frames"].shape[-2:])
        guidance = self.shown["guidance"]
        columns = [
            frames_to_uint8(self.shown["reference_image"][None])[0],
            *(draw_guidance(condition, size) for condition in guidance.values()),
            frames_to_uint8(self.shown["frames"]),
            frames_to_uint8(prediction),
        ]
        return make_panel(columns, ["reference", *guidance, "ground truth", "prediction"])

    def show(self, panel, folder: Path, log: RunLog, step: int) -> None:
        """Write the panel as an mp4 with the music (one frame: a picture), and to TensorBoard as a GIF."""
        folder.mkdir(parents=True, exist_ok=True)
        seconds = torch.as_tensor(self.shown["frame_seconds"]).tolist()
        name = self.shown["sample_id"]
        if len(panel) == 1:
            Image.fromarray(panel[0]).save(folder / f"{name}.png")
            frame_rate = 1.0
        else:
            frame_rate = (len(seconds) - 1) / (seconds[-1] - seconds[0])
            self.save_video(folder / f"{name}.mp4", panel, frame_rate, self.video_path, seconds[0])
        log.moving_picture("validation/panel", gif_bytes(panel, frame_rate), panel.shape[1:3], step)


def summary_line(scalars: dict[str, float], step: int) -> str:
    """Return the console's line of a validation."""
    gaps = [
        f"{name.removeprefix('guidance_')} {value:+.0%}"
        for name, value in scalars.items()
        if name.startswith("guidance_gap")
    ]
    return f"step {step}: val_loss {scalars['val_loss']:.4f}" + (f", {', '.join(gaps)}" if gaps else "")
