"""One process of the training-step benchmark: steps of our trainer, timed. Started by train_step.py.

The step is the trainer's own; logging, validation and saving are left out. Weights are random: the time of a
step does not depend on them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import system.waiting  # noqa: E402  (before torch is loaded)

import torch  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import train_guidance  # noqa: E402
from benchmarks.step.clock import MemoryPeak, StepClock, matrix_rate, measure_steps  # noqa: E402
from benchmarks.step.our_networks import make_champ, make_frozen  # noqa: E402
from benchmarks.step.sizes import GUIDANCE_TYPES, Size, size_of  # noqa: E402
from caching.batch_encoding import move_batch  # noqa: E402
from models import ChampModel  # noqa: E402
from training import champ  # noqa: E402
from training.data import DataFolders, clip_keywords, open_data  # noqa: E402
from training.execution.half_weights import PRECISIONS  # noqa: E402
from training.execution.launch import Session, make_accelerator  # noqa: E402
from training.objective import seed_step  # noqa: E402
from training.planning.step_simulation import simulate_step  # noqa: E402
from training.settings.fields import TrainingArguments  # noqa: E402
from training.setup import open_batches, start_run  # noqa: E402
from training.stages import STAGES  # noqa: E402
from training.step import agree_on_step, run_micro_batch  # noqa: E402


def training_arguments(spec: dict) -> TrainingArguments:
    """Return the trainer's settings for a run of the benchmark."""
    size, stage = size_of(spec), spec["stage"]
    batch_size, num_frames = size.batch_shape(stage)
    return TrainingArguments(
        training_stage=stage,
        train_data_dir=str(Path(spec["work_dir"]) / "data"),
        output_dir=str(Path(spec["work_dir"]) / "output"),
        logging_dir=str(Path(spec["work_dir"]) / "logs"),
        guidance_types=list(GUIDANCE_TYPES),
        guidance_input_channels=[3] * len(GUIDANCE_TYPES),
        guidance_embedding_channels=size.unet_channels[0],
        guidance_block_out_channels=list(size.guidance_channels),
        resolution=[size.resolution],
        sequence_length=num_frames,
        train_batch_size=batch_size,
        num_workers=0,
        center_crop=True,
        **spec["settings"],
    )


def make_model(size: Size, arguments: TrainingArguments, device: torch.device) -> ChampModel:
    """Return the model of a stage as train_guidance.make_task does, but with random weights of a size."""
    stage = arguments.training_stage
    model = make_champ(size, device, has_motion_modules=STAGES[stage].has_motion_modules)
    return champ.ready_for_stage(model, stage, arguments, single_frames=arguments.trains_on_images)


def make_task(size: Size, arguments: TrainingArguments, device: torch.device, data=None) -> champ.ChampTask:
    """Return the task of a stage with random weights; on the meta device it has shapes alone."""
    frozen = make_frozen(size, device, PRECISIONS[arguments.mixed_precision])
    objective = train_guidance.make_objective(arguments, arguments.guidance_types, None)
    return champ.ChampTask(arguments, data, make_model(size, arguments, device), frozen, objective)


class Trainer:
    """The run that train_guidance.set_up makes, but for validation, and its step."""

    def __init__(self, spec: dict):
        self.arguments, self.size = training_arguments(spec), size_of(spec)
        session = Session(make_accelerator(self.arguments))
        self.accelerator, self.device = session.accelerator, session.accelerator.device
        if spec["device"] == "cpu" and self.device.type != "cpu":
            raise SystemExit("--device cpu: a GPU is seen; hide it with CUDA_VISIBLE_DEVICES=")
        self.clock, self.memory = StepClock(self.device), MemoryPeak(self.device)
        seed_step(self.arguments.seed, 0, 0)
        keywords = clip_keywords(
            self.arguments, self.arguments.seed, single_frames=self.arguments.trains_on_images
        )
        folders = DataFolders(self.arguments, self.arguments.output_dir, keywords)
        data = open_data(folders, self.accelerator)
        self.task = make_task(self.size, self.arguments, self.device, data)
        self.run = start_run(self.arguments, session, self.task, len(data.train_indices))
        if self.arguments.cache_latents:
            train_guidance.read_from_caches(self.arguments, self.run)
            self.task.frozen.to("cpu")
        open_batches(self.run, self.arguments.num_workers)
        train_guidance.speed_up(self.arguments, self.run)
        self._watch()

    def _watch(self) -> None:
        clock, frozen, model = self.clock, self.task.frozen, self.task.model
        frozen.vae.encode = clock.watched(frozen.vae.encode, "vae")
        clock.watch(frozen.image_encoder, "image_encoder")
        clock.watch(model.guidance_encoders, "guidance_encoders")
        clock.watch(model.reference_unet, "reference")
        clock.watch(model.unet, "denoiser")
        self.accelerator.backward = clock.watched(self.accelerator.backward, "backward")

    def step(self, number: int) -> float:
        """Train one step, as the loop does, and return its loss."""
        run, clock = self.run, self.clock
        seed_step(self.arguments.seed, 0, number)
        with clock.part("data"):
            batch = move_batch(next(run.batches), self.device)
        micro_batch = run_micro_batch(run.accelerator, run.task, run.model, batch)
        with clock.part("optimizer"):
            facts = agree_on_step(run.accelerator, [micro_batch], run.update.parts)
            run.schedule.set(run.update.optimizer, number)
            run.update(facts, self.arguments)
        return facts.loss


def measure(spec: dict) -> dict:
    """Run the steps of a spec; return its row of the results."""
    trainer, numbers = Trainer(spec), itertools.count(1)
    row = measure_steps(lambda: trainer.step(next(numbers)), trainer.clock, trainer.memory, spec)
    if trainer.device.type == "cuda":
        row |= matrix_use(trainer, next(numbers), row["step_seconds"])
    return row | (simulated_memory(trainer) if spec.get("simulate") else {})


def simulated_memory(trainer: Trainer) -> dict:
    """Return what --dry_run says of the step's memory, in GiB, to be held against `peak_memory_gb`."""
    if not trainer.accelerator.is_main_process:
        return {}
    with torch.compiler.set_stance("force_eager"):  # simulated as it is written
        use = simulate_step(
            trainer.task, shapes_of_batch(trainer.size, trainer.arguments), device=trainer.device
        )
    return {"simulated_gb": use.total / 2**30, "simulated_phase": use.phase}


def shapes_of_batch(size: Size, arguments: TrainingArguments) -> dict:
    """Return a batch of the benchmark, of shapes alone."""
    clips, frames = size.batch_shape(arguments.training_stage)
    image = (3, size.resolution, size.resolution)
    shapes = {
        "frames": (clips, frames, *image), "reference_image": (clips, *image),
        "clip_image": (clips, 3, 224, 224),
    }  # fmt: skip
    guidance = {name: torch.empty(clips, frames, *image, device="meta") for name in GUIDANCE_TYPES}
    images = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return {**images, "guidance": guidance}


def matrix_use(trainer: Trainer, number: int, step_seconds: float) -> dict:
    """Return the step's TFLOP without recomputation, and its share of the card's bf16 matrix rate.

    Counted in a step without checkpointing: what checkpointing computes twice is not work done. Where that
    step's activations do not fit, the share is None.
    """
    trainer.task.model.enable_gradient_checkpointing("none")
    tflop = share = None
    rate = matrix_rate(trainer.device)
    with contextlib.suppress(torch.OutOfMemoryError), FlopCounterMode(display=False) as counter:
        with torch.compiler.set_stance("force_eager"):  # compiled code is not counted
            trainer.step(number)
        tflop = counter.get_total_flops() / 1e12
        share = tflop / step_seconds / rate
    return {"step_tflop": tflop, "bf16_matrix_tflop_per_second": rate, "share_of_matrix_rate": share}


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    row = measure(spec)
    if int(os.environ.get("RANK", "0")) == 0:
        Path(sys.argv[2]).write_text(json.dumps(row), encoding="utf-8")
