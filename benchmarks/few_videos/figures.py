"""The figures of a run: what was evaluated, silhouettes, reference gaps, curves, sizes of files."""

import json
from pathlib import Path

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate_guidance
from benchmarks.demo_quality import overlap, silhouettes
from benchmarks.few_videos.curves import clip_loss, encoded_clips, losses_of_groups
from benchmarks.few_videos.data import scene_of
from datasets import VideoReader
from demo.data import DemoScene, sample_scene
from pipelines.champ_pipeline import ChampPipeline
from training.objective import DiffusionObjective

START_FRAME, NUM_FRAMES = 8, 8


def scene_behind(sample_id: str) -> DemoScene:
    return scene_of(sample_id) if sample_id.startswith("dancer") else sample_scene(sample_id)


def of_evaluation(eval_dir: Path) -> dict[str, dict[str, float]]:
    """Return {metric: {clip: value}} of a finished evaluation, with the overlap of silhouettes."""
    samples = json.loads((eval_dir / "metrics.json").read_text(encoding="utf-8"))["samples"]
    found = {}
    frames = np.arange(START_FRAME, START_FRAME + NUM_FRAMES)
    for name, values in samples.items():
        scene = scene_behind(name)
        video = VideoReader(eval_dir / "videos" / f"{name}.mp4")
        bodies = [silhouettes(one, scene, frames)
                  for one in (video.read(np.arange(NUM_FRAMES)), scene.frames()[frames])]  # fmt: skip
        for metric, value in {**values, "overlap": overlap(*bodies)}.items():
            found.setdefault(metric, {})[name] = value
    return found


def load(*model_flags: str | Path) -> ChampPipeline:
    """Return the model that evaluate_guidance.py would evaluate with these flags."""
    flags = [*map(str, model_flags), "--data_dir", "-", "--output_dir", "-"]
    arguments = evaluate_guidance.parse_arguments(flags)
    return evaluate_guidance.make_sampler(arguments, torch.device("cpu")).pipeline


def reference_gaps(model_flags: list[str], groups: dict[str, tuple[Path, int]]) -> dict[str, dict]:
    """Return {group: {clip: (its loss, its loss with the reference image of another dancer)}}."""
    pipeline = load(*model_flags)
    objective = DiffusionObjective(pipeline.scheduler)
    clips = {name: encoded_clips(pipeline.frozen, folder, range(count), START_FRAME)
             for name, (folder, count) in groups.items()}  # fmt: skip
    others, found = clips["others"], {}
    for group, own in clips.items():
        partners = [others[(place + 1) % len(others)] for place in range(len(own))]
        found[group] = {
            clip.sample_id: [clip_loss(pipeline.model, objective, clip, other) for other in (clip, partner)]
            for clip, partner in zip(own, partners, strict=True)
        }
    return found


def curves_of(logs_dir: Path) -> dict[str, dict[int, float]]:
    """Return {group of clips: {step: loss}} of a run's TensorBoard log."""
    if not logs_dir.exists():
        return {}
    log = EventAccumulator(str(logs_dir), {"scalars": 0})
    log.Reload()
    names = [name for name in log.Tags()["scalars"] if name.startswith("few_videos/")]
    return {name.split("/")[1]: {one.step: one.value for one in log.Scalars(name)} for name in names}


def start_of_curves(model_path: Path) -> dict[str, dict[int, float]]:
    """Return {group of clips: {0: loss}} of the model that all runs start from."""
    pipeline = load("--model_path", model_path)
    losses = losses_of_groups(pipeline.model, DiffusionObjective(pipeline.scheduler))
    return {name.split("/")[1]: {0: loss} for name, loss in losses.items()}


def size_of(final_dir: Path) -> int:
    """Return the bytes of the weights in a final/."""
    return sum(path.stat().st_size for path in final_dir.rglob("*.safetensors"))
