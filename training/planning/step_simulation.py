"""How much memory a training step takes: the step itself, run on tensors that have no storage.

PyTorch's FakeTensorMode goes through forward, backward and update with shapes alone; nothing is computed and
no weight is copied. What is counted is PyTorch's tensors, not what kernels or allocators take besides.
"""

import copy
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from caching.batch_encoding import move_batch
from training import optimization
from training.champ import ChampTask
from training.execution.half_weights import PRECISIONS, frozen_layer_weights
from training.execution.offloading import unused_modules
from training.objective import frame_shapes
from training.step import StepFacts, Update, run_micro_batch

from .memory_tracking import MemoryTracker
from .stand_ins import EightBitStates, cuda_autocast_rules, gpu_chunks, sdpa_instead_of_xformers, storageless

SIMULATED_DEVICES = ("cpu", "cuda")
IMAGES = ("frames", "reference_image", "clip_image")  # of a batch; a latent cache has their encodings


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


def simulate_step(task: ChampTask, batch: dict, *, device: torch.device, as_gpu: bool = False) -> MemoryUse:
    """Return the memory of a training step on `device` in steady state, the optimizer's states being there.

    Of the batch, as the data set gives it (images, also where the run reads a latent cache), and of the
    weights only shapes and types are read; weights may be on the meta device. `as_gpu`: on the CPU's tensors,
    but with what autocast and the latent cache do on a GPU (a PyTorch without CUDA ends the whole process
    when CUDA tensors are simulated). Raises SimulationError.
    """
    if device.type not in SIMULATED_DEVICES:
        raise SimulationError(f"a step on {device.type} cannot be simulated")
    step = _SimulatedStep(task, device=device, as_gpu=as_gpu)
    try:
        return step.run(batch)
    except Exception as error:  # whatever the simulated code raises: its own and users' encoders and losses
        reason = next(iter(str(error).splitlines()), "")
        raise SimulationError(f"{type(error).__name__}: {reason}{_place_of(error)}") from error


def _place_of(error: Exception) -> str:
    """Return ", in CLASS" of the innermost module whose forward pass raised the error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    owners = [frame.f_locals.get("self") for frame in frames if frame.f_code.co_name == "forward"]
    modules = [owner for owner in owners if isinstance(owner, nn.Module)]
    return f", in {type(modules[-1]).__name__}" if modules else ""


class _SimulatedStep:
    """A step on tensors without storage. It is also what a step sees of accelerate: see `backward`."""

    def __init__(self, task: ChampTask, *, device: torch.device, as_gpu: bool):
        objective = copy.copy(task.objective)
        objective.scheduler = copy.deepcopy(objective.scheduler)  # it keeps tensors of the last device
        self.model, self.frozen, self.arguments = task.model, task.frozen, task.arguments
        self.task = ChampTask(task.arguments, None, task.model, task.frozen, objective)
        self.device, self.as_gpu = device, as_gpu
        self.is_gpu = as_gpu or device.type == "cuda"
        self.precision = PRECISIONS[self.arguments.mixed_precision]
        self.tracker = MemoryTracker(device.type)

    def run(self, batch: dict) -> MemoryUse:
        tracker, arguments = self.tracker, self.arguments
        frozen_device = "cpu" if arguments.cache_latents and self.is_gpu else self.device
        with ExitStack() as stand_ins:
            stand_ins.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stand_ins.enter_context(storageless(self.model, self.device, self._dtype_by_parameter()))
            stand_ins.enter_context(storageless(self.frozen, frozen_device, lambda _: self.precision))
            if arguments.enable_xformers_memory_efficient_attention:
                stand_ins.enter_context(sdpa_instead_of_xformers(self.model))
            if self.as_gpu:
                stand_ins.enter_context(cuda_autocast_rules())
                stand_ins.enter_context(gpu_chunks(self.model.guidance_encoders, self.frozen))
            self.model.train()
            if arguments.cache_latents:
                batch = self._with_latents(batch)
            if arguments.cache_features:
                batch = self._with_features(batch)
            with tracker:
                tracker.count(self._weights_on_device(), "weights")
                self._prepare_update()
                tracker.restart()
                self._micro_batch(batch)
                tracker.phase = "optimizer"
                optimization.gradient_norms(self.update.parts)
                self.update(StepFacts(loss=0.0, grad_norms={"all": 1.0}), arguments)
        return MemoryUse(**tracker.peak, phase=tracker.peak_phase)

    def _dtype_by_parameter(self) -> Callable[[Tensor], torch.dtype]:
        """Return what tells a tensor of the model its type: on a GPU frozen layers are in half precision."""
        halved = set()
        if self.is_gpu and self.arguments.mixed_precision != "no":
            halved = {id(parameter) for parameter in frozen_layer_weights(self.model)}
        return lambda tensor: self.precision if id(tensor) in halved else tensor.dtype

    def _weights_on_device(self) -> list[Tensor]:
        """Return parameters and buffers, without those that caches keep off a GPU."""
        modules, offloaded = [self.model], []
        if not (self.is_gpu and self.arguments.cache_latents):
            modules.append(self.frozen)
        if self.is_gpu and self.arguments.cache_features:
            offloaded = unused_modules(self.model, self.model.guidance_encoders.frame_by_frame_types)
        left_out = {id(parameter) for module in offloaded for parameter in module.parameters()}
        tensors = [one for module in modules for one in (*module.parameters(), *module.buffers())]
        return [one for one in tensors if id(one) not in left_out]

    def _with_latents(self, batch: dict) -> dict:
        """Return the shapes of a batch as a run reads it from its latent cache."""
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
        return {name: value for name, value in batch.items() if name not in IMAGES} | latents

    @torch.no_grad()
    def _with_features(self, batch: dict) -> dict:
        """Return the same with a feature cache: conditions whose features are known are not read."""
        group, latents = self.model.guidance_encoders, batch["reference_latents"]
        inputs = (torch.empty(one.shape, device=self.device) for one in (latents, batch["image_tokens"]))
        features, guidance = {}, dict(batch["guidance"])
        read_by_loss = self.task.objective.types_read(frame_shapes(guidance))
        with self._autocast():
            bank = self.model.encode_reference(*inputs)
            for name in group.frame_by_frame_types:
                condition = guidance[name] if name in read_by_loss else guidance.pop(name)
                condition = torch.empty(condition.shape, dtype=condition.dtype, device=self.device)
                features[name] = group.encode_type(name, condition, tuple(latents.shape[-2:]))
        read = {"reference_bank": bank, "guidance_features": features}
        read = tree_map_only(Tensor, lambda one: torch.empty(one.shape, dtype=self.precision), read)
        return {**batch, "guidance": guidance, **read}

    def _prepare_update(self) -> None:
        """Make the optimizer's states, by an update, and the averaged weights; gradients are left at None."""
        arguments, tracker = self.arguments, self.tracker
        trained = optimization.trained_parameters(self.model)
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(
                lambda parameter: tracker.count([parameter.grad], "gradients")
            )
            parameter.grad = torch.zeros_like(parameter)
        tracker.count([parameter.grad for parameter in trained], "gradients")
        if arguments.use_8bit_adam:
            optimizer = EightBitStates(trained)
        else:
            groups = self.task.optimizer_groups(arguments.learning_rate, arguments.pretrained_lr_scale)
            optimizer = optimization.make_optimizer(groups, arguments)
        optimizer.step()
        states = tree_leaves(list(optimizer.state.values()))
        tracker.count([state for state in states if isinstance(state, Tensor)], "optimizer")
        ema = optimization.make_ema(self.model, arguments.ema_decay) if arguments.use_ema else None
        if ema is not None:
            tracker.count(ema.shadow_params, "optimizer")
        self.update = Update(self.model, self.task.trained_parts(), optimizer, ema)
        if arguments.set_grads_to_none and arguments.gradient_accumulation_steps == 1:
            optimizer.zero_grad(set_to_none=True)

    def _micro_batch(self, shapes: dict) -> None:
        """Run the last micro-batch of a step, beside what is kept of those before it."""
        self.tracker.phase = "encode"
        # With one micro-batch per step: the last step's, which is there until the next one is encoded.
        self.before = [
            self._batch(shapes) for _ in range(max(1, self.arguments.gradient_accumulation_steps - 1))
        ]
        batch = self._batch(shapes)
        num_clips = len(batch["latent_mean" if self.arguments.cache_latents else "frames"])
        batch |= {"position": range(num_clips), "sample_id": [""] * num_clips}
        run_micro_batch(self, self.task, self._predict, batch)

    def accumulate(self, model) -> AbstractContextManager:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.tracker.phase = "backward"
        loss.backward()

    def _batch(self, shapes: dict) -> dict:
        batch = tree_map_only(Tensor, lambda like: torch.empty(like.shape, dtype=like.dtype), shapes)
        return move_batch(batch, self.device)

    def _predict(self, *inputs, **options) -> Tensor:
        """Return the model's prediction, as accelerate prepares its forward pass."""
        if self.arguments.gradient_accumulation_steps == 1:
            self.before = None
        self.tracker.phase = "forward"
        with self._autocast():
            prediction = self.model(*inputs, **options)
        return prediction.float()

    def _autocast(self) -> torch.autocast:
        is_half = self.arguments.mixed_precision != "no"
        return torch.autocast(self.device.type, self.precision, enabled=is_half)
