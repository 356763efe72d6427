"""Losses of the dancer's training clips, of her held-out clips and of other dancers', at fixed noise.

A module for `--guidance_modules`: every validation then logs them as `few_videos/GROUP`. The folders come
from the environment, as no flag of the trainer names them.
"""

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from datasets import GuidanceDataset, collate_clips
from evaluation.guidance_gaps import VALIDATION_SEED, EncodedClip, encode_clip
from evaluation.validation_metrics import ValidationRun, register_validation_metric
from models import FrozenEncoders

DEMO, WORK = "FEW_VIDEOS_DEMO_DATA", "FEW_VIDEOS_WORK"
CHANNELS = {"music": 35, "pose": 134}
TIMESTEPS = (375, 875)  # at which the validation measures its gaps
RESOLUTION, NUM_FRAMES = 128, 8
START = 16  # of the clips, each in the middle of its video
OTHERS = range(12, 15)  # of the demo's held-out dancers; those of the tables come before


@torch.no_grad()
def clip_loss(model, objective, clip: EncodedClip, reference: EncodedClip | None = None) -> float:
    """Return a clip's mean loss at fixed timesteps; `reference`: a clip whose reference image it gets."""
    reference, timesteps = reference or clip, torch.tensor(TIMESTEPS)
    clean = clip.latents.expand(len(TIMESTEPS), -1, -1, -1, -1)
    noise = objective.draw(clean, [(VALIDATION_SEED, timestep) for timestep in TIMESTEPS]).noise
    bank = model.encode_reference(reference.reference_latents, reference.image_tokens)
    features = model.encode_guidance(clip.guidance, clip.latents.shape[-2:])
    losses = []
    for one, at in zip(noise.split(1), timesteps.split(1), strict=True):
        noisy = objective.add_noise(clip.latents, one, at)
        prediction = model.denoise(noisy, at, reference.image_tokens, bank, features)
        losses += objective.sample_losses(prediction, objective.target(clip.latents, one, at), at).tolist()
    return sum(losses) / len(losses)


def encoded_clips(
    frozen: FrozenEncoders, folder: Path, videos: Sequence[int] | None, start: int
) -> list[EncodedClip]:
    """Return a clip of each video of a data folder, or of those named, as the model takes it."""
    dataset = GuidanceDataset(
        folder, [*CHANNELS], [*CHANNELS.values()], resolution=RESOLUTION, sequence_length=NUM_FRAMES
    )
    clips = (dataset.read_clip(video, start) for video in videos or range(len(dataset)))
    return [encode_clip(frozen, collate_clips([clip]), torch.device("cpu")) for clip in clips]


@functools.cache
def groups() -> dict[str, list[EncodedClip]]:
    """Return {group: its clips}, encoded once in a run."""
    work, demo = Path(os.environ[WORK]), Path(os.environ[DEMO])
    frozen = FrozenEncoders.from_pretrained("assets/tiny_base")
    return {
        "training_clips": encoded_clips(frozen, work / "train", None, START),
        "held_out_clips": encoded_clips(frozen, work / "validation", None, START),
        "other_dancers": encoded_clips(frozen, demo / "validation", OTHERS, START),
    }


def losses_of_groups(model, objective) -> dict[str, float]:
    """Return {few_videos/GROUP: mean loss of its clips}."""
    means = {}
    for name, clips in groups().items():
        found = [clip_loss(model, objective, clip) for clip in clips]
        means[f"few_videos/{name}"] = sum(found) / len(found)
    return means


def measure_in_validation(run: ValidationRun) -> dict[str, float]:
    return losses_of_groups(run.model, run.objective)


if WORK in os.environ:  # imported by a run of compare.py, not by one that reads its tables
    lower_is_better = {"few_videos/held_out_clips": False}
    register_validation_metric("few_videos", higher_is_better=lower_is_better)(measure_in_validation)
