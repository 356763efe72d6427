"""One process of the training-step benchmark: steps of our trainer, timed. Started by train_step.py.

The step is the one of train_guidance.py, made of the trainer's own parts; logging, validation and saving are
left out. Weights are random: the time of a step does not depend on them.
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
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # noqa: E402

from benchmarks.step.clock import MemoryPeak, StepClock, matrix_rate, measure_steps  # noqa: E402
from benchmarks.step.sizes import GUIDANCE_TYPES, Size, size_of  # noqa: E402
from datasets import DataError, collate_clips  # noqa: E402
from models import ChampModel, FrozenEncoders, create_guidance_encoders  # noqa: E402
from models.champ import weights  # noqa: E402
from models.champ.denoising_unet import ImageDenoisingUNet, MotionDenoisingUNet  # noqa: E402
from training import building, faults, optimization  # noqa: E402
from training.batches import SampleStream, encode_batch, endless_batches, move_batch  # noqa: E402
from training.execution import compilation, half_weights  # noqa: E402
from training.objective import mix_seed, seed_step  # noqa: E402
from training.planning.step_simulation import simulate_step  # noqa: E402
from training.settings.fields import TrainingArguments  # noqa: E402
from training.stages import STAGES, optimizer_groups, trained_parts  # noqa: E402
from training_data import add_features, cached_clips, make_dataset  # noqa: E402


def training_arguments(spec: dict) -> TrainingArguments:
    """Return the trainer's settings for a run of the benchmark."""
    size, stage = size_of(spec), spec["stage"]
    batch_size, num_frames = size.batch_shape(stage)
    return TrainingArguments(
        training_stage=stage,
        train_data_dir=str(Path(spec["work_dir"]) / "data"),
        output_dir=str(Path(spec["work_dir"]) / "output"),
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
    """Return the model of a stage as building.build_model does, but with random weights of a size."""
    stage = STAGES[arguments.training_stage]
    unet_class = MotionDenoisingUNet if stage.has_motion_modules else ImageDenoisingUNet
    with device:
        base = UNet2DConditionModel(**size.unet_config())
        unet = unet_class.from_unet2d(base)
        encoders = create_guidance_encoders(
            arguments.guidance_types, arguments.guidance_input_channels,
            arguments.guidance_embedding_channels, block_out_channels=size.guidance_channels,
        )  # fmt: skip
        model = ChampModel(unet, base, weights.as_group(encoders, unet))
    return building.ready_for_stage(model, arguments)


def make_frozen(size: Size, device: torch.device, precision: torch.dtype) -> FrozenEncoders:
    with device:
        vae = AutoencoderKL(**size.vae_config())
        image_encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**size.image_encoder_config()))
    return FrozenEncoders(vae, image_encoder).to(device, dtype=precision)


class Trainer:
    """What train_guidance.run builds, and its step."""

    def __init__(self, spec: dict):
        self.arguments, self.size = training_arguments(spec), size_of(spec)
        self.accelerator = building.make_accelerator(self.arguments)
        if spec["device"] == "cpu" and self.accelerator.device.type != "cpu":
            raise SystemExit("--device cpu: a GPU is seen; hide it with CUDA_VISIBLE_DEVICES=")
        self.device = self.accelerator.device
        self.clock, self.memory = StepClock(self.device), MemoryPeak(self.device)
        seed_step(self.arguments.seed, 0, 0)
        precision = building.PRECISIONS[self.arguments.mixed_precision]
        self.frozen = make_frozen(self.size, self.device, precision)
        self.bare_model = make_model(self.size, self.arguments, self.device)
        self.batches = self._open_batches()
        if self.arguments.cache_latents:
            self.frozen.to("cpu")
        self.objective = building.make_objective(self.arguments, None)
        groups = optimizer_groups(self.bare_model, self.arguments.learning_rate, 1.0)
        optimizer = optimization.make_optimizer(groups, self.arguments)
        self.schedule = optimization.LearningRateSchedule(optimizer, self.arguments, 1000)
        self.model, self.optimizer = self.accelerator.prepare(self.bare_model, optimizer)
        self.bare_model.train()
        self.parts = trained_parts(self.bare_model)
        self.trained = optimization.trained_parameters(self.bare_model)
        half_weights.halve_frozen(self.bare_model, precision, self.device, is_main=False)
        if self.arguments.compile:
            single_frames = building.trains_on_images(self.arguments)
            compilation.compile_blocks(self.bare_model, self.say, single_frames=single_frames)
        self._watch()

    @staticmethod
    def say(line: str) -> None:
        print(line, file=sys.stderr)

    def _open_batches(self):
        arguments = self.arguments
        clips = train_set = make_dataset(arguments, arguments.train_data_dir, self.accelerator)
        indices = list(range(len(train_set)))
        if arguments.cache_latents:
            clips = cached_clips(arguments, train_set, indices, self.frozen, self.accelerator, lambda _: None)
        if arguments.cache_features:  # what training has no use for stays aside: there is no validation
            model, frozen = self.bare_model, self.frozen
            add_features(arguments, clips, model, frozen, self.accelerator, lambda _: None)
        stream = SampleStream(
            indices, batch_size=arguments.train_batch_size, seed=arguments.seed,
            rank=self.accelerator.process_index, num_processes=self.accelerator.num_processes,
        )  # fmt: skip
        return endless_batches(
            clips, stream, collate_clips, num_workers=0, pin_memory=self.device.type == "cuda",
            user_errors=(DataError,),
        )  # fmt: skip

    def _watch(self) -> None:
        self.frozen.vae.encode = self.clock.watched(self.frozen.vae.encode, "vae")
        self.clock.watch(self.frozen.image_encoder, "image_encoder")
        self.clock.watch(self.bare_model.guidance_encoders, "guidance_encoders")
        self.clock.watch(self.bare_model.reference_unet, "reference")
        self.clock.watch(self.bare_model.unet, "denoiser")

    def step(self, number: int) -> float:
        """Train one step, as the loop of train_guidance.py does, and return its loss."""
        accelerator, clock, seed = self.accelerator, self.clock, self.arguments.seed
        seed_step(seed, 0, number)
        with clock.part("data"):
            batch = move_batch(next(self.batches), self.device)
        latents, conditions = encode_batch(
            self.frozen, batch, [mix_seed(seed, 1, position) for position in batch["position"]]
        )
        draw = self.objective.draw(latents, [(seed, position) for position in batch["position"]])
        with accelerator.accumulate(self.model):
            loss = self.objective(self.model, latents, conditions, draw)
            with clock.part("backward"):
                accelerator.backward(loss)
        micro_batch = faults.MicroBatch(batch["sample_id"], latents, conditions, draw, loss.detach())
        with clock.part("optimizer"):
            accelerator.unscale_gradients()
            norms = optimization.gradient_norms(self.parts)
            facts = faults.agree_on_step(accelerator, [micro_batch], norms, 0)
            optimization.clip_gradients(self.trained, self.arguments.max_grad_norm, facts.grad_norm)
            self.schedule.set(self.optimizer, number)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=self.arguments.set_grads_to_none)
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
            trainer.bare_model, trainer.frozen, trainer.objective, trainer.arguments,
            shapes_of_batch(trainer.size, trainer.arguments), device=trainer.device,
        )  # fmt: skip
    return {"simulated_gb": use.total / 2**30, "simulated_phase": use.phase}


def shapes_of_batch(size: Size, arguments: TrainingArguments) -> dict:
    """Return a batch of the benchmark's pictures without their content."""
    clips, frames = size.batch_shape(arguments.training_stage)
    picture = (3, size.resolution, size.resolution)
    shapes = {
        "frames": (clips, frames, *picture), "reference_image": (clips, *picture),
        "clip_image": (clips, 3, 224, 224),
    }  # fmt: skip
    guidance = {name: torch.empty(clips, frames, *picture, device="meta") for name in GUIDANCE_TYPES}
    pictures = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return {**pictures, "guidance": guidance}


def matrix_use(trainer: Trainer, number: int, step_seconds: float) -> dict:
    """Return the step's TFLOP without recomputation, and its share of the card's bf16 matrix rate.

    Counted in a step without checkpointing: what checkpointing computes twice is not work done. Where that
    step's activations do not fit, the share is None.
    """
    trainer.bare_model.enable_gradient_checkpointing("none")
    tflop = share = None
    rate = matrix_rate(trainer.device)
    with contextlib.suppress(torch.OutOfMemoryError), FlopCounterMode(display=False) as counter:
        with torch.compiler.set_stance("force_eager"):  # compiled code is not counted
            trainer.step(number)
        tflop = counter.get_total_flops() / 1e12
        share = tflop / step_seconds / rate
    return {"step_tflop": tflop, "bf16_matrix_tflop_per_second": rate, "share_of_matrix_rate": share}


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text())
    row = measure(spec)
    if int(os.environ.get("RANK", "0")) == 0:
        Path(sys.argv[2]).write_text(json.dumps(row))
