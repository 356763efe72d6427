"""How much memory a training step takes: the step itself, run on tensors that have no storage.

PyTorch's FakeTensorMode goes through forward, backward and update with shapes alone; nothing is computed and
no weight is copied. What is counted is PyTorch's tensors, not what kernels or allocators take besides.
"""

import copy
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from caching.feature_encoding import unused_modules
from training import optimization
from training.batches import encode_batch, move_batch
from training.building import PRECISIONS
from training.execution.half_weights import frozen_layer_weights
from training.objective import DiffusionObjective
from training.settings.fields import TrainingArguments
from training.stages import optimizer_groups, trained_parts

from .memory_tracking import MemoryTracker
from .stand_ins import EightBitStates, cuda_autocast_rules, gpu_chunks, sdpa_instead_of_xformers, storageless

SIMULATED_DEVICES = ("cpu", "cuda")
PICTURES = ("frames", "reference_image", "clip_image")  # of a batch; a latent cache has their encodings


class SimulationError(Exception):
    """Why a step cannot be simulated, in one line."""


@dataclass(frozen=True)
class MemoryUse:
    """Bytes at the peak of a training step, in one process, and the phase of the step in which it is."""

    weights: int  # of the model, and of the frozen encoders where they are on the device
    gradients: int
    optimizer: int  # its states, and the averaged weights
    activations: int  # what is left: what the backward pass needs, and what is just being computed
    phase: str  # encode, forward, backward or optimizer

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def simulate_step(
    model: nn.Module,
    frozen: nn.Module,
    objective: DiffusionObjective,
    arguments: TrainingArguments,
    batch: dict,
    *,
    device: torch.device,
    as_gpu: bool = False,
) -> MemoryUse:
    """Return what a training step takes on `device` in steady state, the optimizer's states being there.

    Of the batch, as the data set gives it (pictures, also where the run reads a latent cache), and of the
    weights only shapes and types are read; weights may be on the meta device. `as_gpu`: on the CPU's tensors,
    but with what autocast and the latent cache do on a GPU (a PyTorch without CUDA ends the whole process
    when CUDA tensors are simulated). Raises SimulationError.
    """
    if device.type not in SIMULATED_DEVICES:
        raise SimulationError(f"a step on {device.type} cannot be simulated")
    step = _SimulatedStep(model, frozen, objective, arguments, device=device, as_gpu=as_gpu)
    try:
        return step.run(batch)
    except Exception as error:  # whatever the simulated code raises: its own and users' encoders and losses
        reason = next(iter(str(error).splitlines()), "")
        raise SimulationError(f"{type(error).__name__}: {reason}{_place_of(error)}") from error


def _place_of(error: Exception) -> str:
    """Return ", in CLASS" of the innermost module whose forward pass raised the error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    modules = [frame.f_locals["self"] for frame in frames if frame.f_code.co_name == "forward"
               and isinstance(frame.f_locals.get("self"), nn.Module)]  # fmt: skip
    return f", in {type(modules[-1]).__name__}" if modules else ""


class _SimulatedStep:
    def __init__(self, model, frozen, objective, arguments, *, device, as_gpu):
        self.model, self.frozen, self.arguments = model, frozen, arguments
        self.objective = copy.copy(objective)
        self.objective.scheduler = copy.deepcopy(objective.scheduler)  # it keeps tensors of the last device
        self.device, self.as_gpu = device, as_gpu
        self.is_gpu = as_gpu or device.type == "cuda"
        self.precision = PRECISIONS[arguments.mixed_precision]
        self.tracker = MemoryTracker(device.type)

    def run(self, batch: dict) -> MemoryUse:
        tracker = self.tracker
        frozen_device = "cpu" if self.arguments.cache_latents and self.is_gpu else self.device
        with (
            FakeTensorMode(allow_non_fake_inputs=True),
            storageless(self.model, self.device, self._dtype_by_parameter()),
            storageless(self.frozen, frozen_device, lambda _: self.precision),
            sdpa_instead_of_xformers(self.model, self.arguments),
            cuda_autocast_rules() if self.as_gpu else nullcontext(),
            gpu_chunks() if self.as_gpu else nullcontext(),
        ):
            self.model.train()
            batch = self._as_read(batch)
            with tracker:
                tracker.count(self._weights_on_device(), "weights")
                self._prepare_update()
                tracker.restart()
                self._micro_batch(batch)
                self._update()
        return MemoryUse(**tracker.peak, phase=tracker.peak_phase)

    def _dtype_by_parameter(self) -> Callable[[Tensor], torch.dtype]:
        """Return what tells a tensor of the model its type: on a GPU frozen layers are in half precision."""
        halved = set()
        if self.is_gpu and self.arguments.mixed_precision != "no":
            halved = {id(parameter) for parameter in frozen_layer_weights(self.model)}
        return lambda tensor: self.precision if id(tensor) in halved else tensor.dtype

    def _weights_on_device(self) -> list[Tensor]:
        """Return parameters and buffers, without those that caches let stay off a GPU."""
        modules, aside = [self.model], []
        if not (self.is_gpu and self.arguments.cache_latents):
            modules.append(self.frozen)
        if self.is_gpu and self.arguments.cache_features:
            aside = unused_modules(self.model, self.model.guidance_encoders.frame_by_frame_types)
        left_out = {id(parameter) for module in aside for parameter in module.parameters()}
        tensors = [one for module in modules for one in (*module.parameters(), *module.buffers())]
        return [one for one in tensors if id(one) not in left_out]

    def _as_read(self, batch: dict) -> dict:
        """Return the shapes of a batch as the run reads it: from its caches, where it has them."""
        if self.arguments.cache_latents:
            batch = self._with_latents(batch)
        if self.arguments.cache_features:
            batch = self._with_features(batch)
        return batch

    def _with_latents(self, batch: dict) -> dict:
        clips, frames, _, height, width = batch["frames"].shape
        factor, channels = self.frozen.latent_factor, self.frozen.vae.config.latent_channels
        size = (channels, height // factor, width // factor)
        shapes = {
            "latent_mean": (clips, frames, *size),
            "reference_latents": (clips, *size),
            "image_tokens": (clips, 1, self.frozen.image_token_width),
        }
        if self.frozen.num_moments == 2:
            shapes["latent_std"] = shapes["latent_mean"]
        latents = {name: torch.empty(shape, dtype=self.precision) for name, shape in shapes.items()}
        return {name: value for name, value in batch.items() if name not in PICTURES} | latents

    @torch.no_grad()
    def _with_features(self, batch: dict) -> dict:
        """As training_data.add_features has it: conditions whose features are known are not read."""
        group, latents = self.model.guidance_encoders, batch["reference_latents"]
        like = {name: torch.empty(batch[name].shape, device=self.device)
                for name in ("reference_latents", "image_tokens")}  # fmt: skip
        bank = self.model.encode_reference(**like)
        features, guidance = {}, dict(batch["guidance"])
        for name in group.frame_by_frame_types:
            condition = guidance[name] if self.arguments.loss else guidance.pop(name)
            condition = torch.empty(condition.shape, dtype=condition.dtype, device=self.device)
            features[name] = group.encode_type(name, condition, tuple(latents.shape[-2:]))
        read = {"reference_bank": bank, "guidance_features": features}
        read = tree_map_only(Tensor, lambda one: torch.empty(one.shape, dtype=self.precision), read)
        return {**batch, "guidance": guidance, **read}

    def _prepare_update(self) -> None:
        """Make the optimizer's states, by an update, and the averaged weights; gradients are left at None."""
        arguments, tracker = self.arguments, self.tracker
        self.trained = optimization.trained_parameters(self.model)
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(
                lambda parameter: tracker.count([parameter.grad], "gradients")
            )
            parameter.grad = torch.zeros_like(parameter)
        tracker.count([parameter.grad for parameter in self.trained], "gradients")
        if arguments.use_8bit_adam:
            self.optimizer = EightBitStates(self.trained)
        else:
            groups = optimizer_groups(self.model, arguments.learning_rate, arguments.pretrained_lr_scale)
            self.optimizer = optimization.make_optimizer(groups, arguments)
        self.optimizer.step()
        states = [state for state in tree_leaves(list(self.optimizer.state.values()))]
        tracker.count([state for state in states if isinstance(state, Tensor)], "optimizer")
        self.ema = optimization.make_ema(self.model, arguments.ema_decay) if arguments.use_ema else None
        if self.ema is not None:
            tracker.count(self.ema.shadow_params, "optimizer")
        if arguments.set_grads_to_none and arguments.gradient_accumulation_steps == 1:
            for parameter in self.trained:
                parameter.grad = None

    def _micro_batch(self, shapes: dict) -> None:
        """The last micro-batch of a step, beside what is kept of those before it."""
        tracker, arguments = self.tracker, self.arguments
        tracker.phase = "encode"
        before = [self._batch(shapes) for _ in range(max(1, arguments.gradient_accumulation_steps - 1))]
        batch = self._batch(shapes)
        numbers = range(len(batch["latent_mean" if arguments.cache_latents else "frames"]))
        latents, conditions = encode_batch(self.frozen, batch, numbers)
        draw = self.objective.draw(latents, [(number,) for number in numbers])
        if arguments.gradient_accumulation_steps == 1:
            del before  # the last step's batch, which is there until the next one is encoded
        tracker.phase = "forward"
        loss = self.objective(self._predict, latents, conditions, draw)
        tracker.phase = "backward"
        loss.backward()

    def _batch(self, shapes: dict) -> dict:
        batch = tree_map_only(Tensor, lambda like: torch.empty(like.shape, dtype=like.dtype), shapes)
        return move_batch(batch, self.device)

    def _predict(self, *inputs, **options) -> Tensor:
        is_half = self.arguments.mixed_precision != "no"
        with torch.autocast(self.device.type, self.precision, enabled=is_half):
            prediction = self.model(*inputs, **options)
        return prediction.float()  # as accelerate does

    def _update(self) -> None:
        arguments = self.arguments
        self.tracker.phase = "optimizer"
        optimization.gradient_norms(trained_parts(self.model))
        optimization.clip_gradients(self.trained, arguments.max_grad_norm, 1.0)
        self.optimizer.step()
        if arguments.set_grads_to_none:
            for parameter in self.trained:
                parameter.grad = None
        if self.ema is not None:
            self.ema.step(self.trained)
