"""Weights, gradients and optimizer states sharded over the processes (FSDP2, arXiv:2304.11277).

Asked for by an accelerate configuration, done here by torch's `fully_shard`: accelerate's own way does
nothing on a CPU, and its checkpoints are of another layout. Ours hold whole tensors, whoever wrote them.
"""

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from system.errors import ConfigError
from training.settings.fields import RunSettings
from training.settings.from_accelerate import FALSE, TRUE, is_on

SHARDED_BLOCKS = (ResnetBlock2D, Transformer2DModel, AnimateDiffTransformer3D)
USE_FSDP = "ACCELERATE_USE_FSDP"
RESHARDS, KEEPS_WHOLE = (*TRUE, "full_shard"), (*FALSE, "shard_grad_op")
# {variable: (what the launcher sets where nobody asked, why another value changes nothing)}
UNHEEDED = {
    "FSDP_SHARDING_STRATEGY": ("FULL_SHARD", "fsdp_reshard_after_forward decides"),
    "FSDP_AUTO_WRAP_POLICY": ("NO_WRAP", "the UNets' blocks are sharded"),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ("", "the UNets' blocks are sharded"),
    "FSDP_MIN_NUM_PARAMS": ("100000000", "the UNets' blocks are sharded"),
    "FSDP_STATE_DICT_TYPE": ("FULL_STATE_DICT", "checkpoints hold whole tensors"),
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("true", "each process reads the model's files"),
    "FSDP_BACKWARD_PREFETCH": ("", "FSDP2 has no such option"),
    "FSDP_FORWARD_PREFETCH": ("false", "FSDP2 has no such option"),
    "FSDP_USE_ORIG_PARAMS": ("true", "FSDP2 has no such option"),
    "FSDP_SYNC_MODULE_STATES": ("true", "FSDP2 has no such option"),
}


def take_request(settings: RunSettings, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Return whether accelerate's launcher asks for FSDP, and take that from accelerate: it is done here.

    One process has nothing to shard. Raises ConfigError for what of FSDP cannot be done.
    """
    is_asked_for = is_on(environ.get(USE_FSDP))
    environ[USE_FSDP] = "false"
    if not is_asked_for or int(environ.get("WORLD_SIZE", "1")) == 1:
        return False
    faults = {
        "fsdp_version: 1; set fsdp_version: 2": environ.get("FSDP_VERSION", "1") != "2",
        "fsdp_offload_params; set it to false": is_on(environ.get("FSDP_OFFLOAD_PARAMS")),
        "fsdp_activation_checkpointing; set it to false, and give --gradient_checkpointing all": is_on(
            environ.get("FSDP_ACTIVATION_CHECKPOINTING")
        ),
        "fsdp_activation_checkpointing_offload; set it to false, and give --gradient_checkpointing all": (
            is_on(environ.get("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD"))
        ),
        "fsdp_ignored_modules; leave it out": bool(environ.get("FSDP_IGNORED_MODULES")),
        "another fsdp_reshard_after_forward than true or false; set it to true": (
            environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in RESHARDS + KEEPS_WHOLE
        ),
        "FSDP, which cannot shard --use_8bit_adam; leave that out": settings.use_8bit_adam,
        "FSDP, which does not go with --mixed_precision fp16; use bf16": settings.mixed_precision == "fp16",
    }
    for fault, is_there in faults.items():
        if is_there:
            hint = "configs/accelerate/fsdp.yaml works as it is"
            raise ConfigError(f"the accelerate configuration asks for {fault} ({hint})")
    return True


def unheeded_lines(environ: Mapping[str, str]) -> list[str]:
    """Return lines on what a request for FSDP says and what changes nothing. Before `take_request`."""
    if not is_on(environ.get(USE_FSDP)):
        return []
    if int(environ.get("WORLD_SIZE", "1")) == 1:
        return ["FSDP has no effect: one process has nothing to shard"]
    return [
        f"{variable}={environ[variable]} has no effect: {why}"
        for variable, (unasked, why) in UNHEEDED.items()
        if environ.get(variable, unasked).lower() != unasked.lower()
    ]


def reshards_after_forward(environ: MutableMapping[str, str] = os.environ) -> bool:
    """Return whether a block's weights are given back after the forward pass, to be fetched a second time."""
    return environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() in RESHARDS


def shard_model(model: nn.Module) -> None:
    """Leave each process its share of every parameter; a denoising UNet's blocks are fetched one by one.

    The rest is fetched for a whole step: reference features leave the reference UNet by another way than its
    output, which FSDP would not notice in the backward pass. To be called before the optimizer is made.
    """
    # torch warns of blocks that return views: adding to one in place would lose a gradient. Nobody here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in list(getattr(model, "unet", model).modules()):
        if isinstance(module, SHARDED_BLOCKS):
            fully_shard(module, reshard_after_forward=reshards_after_forward())
    fully_shard(model, reshard_after_forward=False)

    def shard(module: nn.Module, state_dict: dict[str, Tensor], *_) -> None:
        for name, parameter in module.named_parameters():
            if name in state_dict:
                state_dict[name] = share_of(state_dict[name], parameter)

    model.register_load_state_dict_pre_hook(shard)


def shard_optimizer(optimizer: Optimizer) -> None:
    """Let a sharded model's optimizer save and load whole tensors; all processes do both together."""

    def join(optimizer: Optimizer, state_dict: dict) -> dict:
        return {**state_dict, "state": tree_map_only(Tensor, whole_on_main, state_dict["state"])}

    def shard(optimizer: Optimizer, state_dict: dict) -> dict:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        states = {
            place: {name: share_of(value, parameters[place]) for name, value in state.items()}
            for place, state in state_dict["state"].items()
        }
        return {**state_dict, "state": states}

    optimizer.register_state_dict_post_hook(join)
    optimizer.register_load_state_dict_pre_hook(shard)


def is_sharded(model: nn.Module) -> bool:
    return isinstance(model, FSDPModule)


def whole_on_main(tensor: Tensor) -> Tensor:
    """Return what the processes' shares make up, on the CPU: in the main process, elsewhere the share.

    All processes call it together. A tensor that is not sharded comes back as it is.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    own, num_processes = tensor.to_local(), dist.get_world_size()
    num_rows = -(-len(tensor) // num_processes)  # the last processes have fewer, or none
    padded = own.new_zeros(num_rows, *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in range(num_processes)] if dist.get_rank() == 0 else None
    # Not DTensor.full_tensor(): one of some thousands on gloo ended in a segmentation fault.
    dist.gather(padded, parts)
    return torch.cat(parts)[: len(tensor)].cpu() if parts else tensor


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm, scalar, of all gradients together, over all processes where they are sharded."""
    norm = torch.nn.utils.get_total_norm([own_share(gradient) for gradient in gradients])
    if not isinstance(gradients[0], DTensor):
        return norm
    squares = norm.square()
    dist.all_reduce(squares)
    return squares.sqrt()


def own_share(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds: to write to it is to write to the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_share(part: Tensor, like: Tensor) -> Tensor:
    """Return a process's part as a share of a tensor, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return part
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def share_of(whole: Tensor, like: Tensor) -> Tensor:
    """Return this process's share of a tensor that all have, sharded as `like` is, if it has that shape."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    whole = whole.to(like.device, like.dtype)
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def whole_weights(model: nn.Module) -> Iterator[None]:
    """Let every process have all weights inside the block, which may then work alone: to validate, to save.

    All processes enter and leave together. The weights are for reading: what is written to them is lost.
    A model that is not sharded has them anyway.
    """
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    # FSDP's hooks would save shares.
    hooks = {module: module._state_dict_pre_hooks for module in model.modules()} if shards else {}
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    for module in hooks:
        module._state_dict_pre_hooks = OrderedDict()
    try:
        yield
    finally:
        for module, own in hooks.items():
            module._state_dict_pre_hooks = own
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(module is not model and reshards_after_forward(), recurse=False)
