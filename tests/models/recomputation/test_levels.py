"""Levels of gradient checkpointing: the same gradients, less memory, nothing left behind."""

import gc
import statistics
import weakref

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy

from models import ChampModel, ModelError, create_guidance_encoders
from models.champ.denoising_unet import MotionModule
from models.recomputation import CHECKPOINTING_LEVELS, levels
from tests.models.gradients import gradients
from training.planning.memory_tracking import MemoryTracker


@pytest.mark.parametrize("level", ["selective", "all"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradient_checkpointing_changes_nothing(make_model, make_inputs, level, precision):
    model, inputs = make_model(), make_inputs()
    inputs["reference_mask"] = torch.tensor([True, False])
    exact = gradients(model, inputs)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        prediction, expected = model(**inputs), gradients(model, inputs)
        model.enable_gradient_checkpointing(level)
        torch.testing.assert_close(model(**inputs), prediction, atol=0, rtol=0)
        found = gradients(model, inputs)
    assert set(found) == set(expected)
    if precision == torch.float32 or level == "all":
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)
    else:  # some sums of gradients are rounded in other places: as near to float32's all the same
        errors, stock_errors = (
            [float((some[name] - exact[name]).norm() / exact[name].norm()) for name in exact]
            for some in (found, expected)
        )
        assert statistics.median(errors) < 1.1 * statistics.median(stock_errors)
        assert max(error / stock for error, stock in zip(errors, stock_errors, strict=True)) < 1.5


def saved_bytes(module: torch.nn.Module, inputs: dict, monkeypatch) -> list[int]:
    """Bytes of what a forward pass keeps for its backward pass: saved tensors, dear outputs, no weights."""
    sizes, kept = {}, []

    def count(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # else its address could be used again
        return tensor

    def keep(context, *arguments, **keywords):
        outputs = context.op_output if isinstance(context.op_output, tuple) else (context.op_output,)
        for output in outputs:
            if isinstance(output, torch.Tensor):
                count(output)
        return CheckpointPolicy.MUST_SAVE

    monkeypatch.setattr(levels, "_keep", keep)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        module(**inputs)
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    return [size for address, size in sizes.items() if address not in weights]


def held_bytes(model: ChampModel, inputs: dict) -> int:
    """Bytes between a forward pass and its backward pass, inputs included."""
    with MemoryTracker("cpu") as tracker:
        output = model(**inputs)
        held = tracker.held["activations"]
    del output
    return held


def test_each_level_of_gradient_checkpointing_keeps_less(make_model, make_inputs):
    model, inputs = make_model(), make_inputs(num_clips=1, num_frames=8)
    found = {}
    for level in CHECKPOINTING_LEVELS:
        model.enable_gradient_checkpointing(level)
        found[level] = held_bytes(model, inputs)
    assert found["selective"] < 0.6 * found["none"] and found["all"] < 0.6 * found["selective"], found
    model.enable_gradient_checkpointing("none")
    assert held_bytes(model, inputs) == found["none"]


def test_selective_keeps_no_features_of_the_frames_size(monkeypatch):
    encoder = create_guidance_encoders(["depth"], [3], 32, block_out_channels=(16, 32, 96, 64))["depth"]
    inputs = {"condition": torch.rand(1, 1, 3, 128, 128)}
    largest = {}
    for level in ("none", "selective"):
        encoder.gradient_checkpointing = level != "none"
        encoder._gradient_checkpointing_func = levels.checkpoint_function(level)
        largest[level] = max(saved_bytes(encoder, inputs, monkeypatch))
    assert largest["none"] == 16 * 128 * 128 * 4  # the first two convolutions' 16 channels
    assert largest["selective"] == 32 * 64 * 64 * 4  # those at half the size, dear enough to stay


def test_frozen_blocks_and_sampling_are_not_watched(make_model, make_inputs, monkeypatch):
    """Selective checkpointing looks at each operation, which costs: only where a gradient can flow."""
    watched = []
    monkeypatch.setattr(levels, "_selective_contexts", lambda: watched.append(1))
    model = make_model()
    model.enable_gradient_checkpointing("selective")
    model.requires_grad_(False)
    model(**make_inputs())
    model.requires_grad_(True)
    with torch.no_grad():
        model(**make_inputs())
    assert not watched


def test_unknown_levels_of_gradient_checkpointing_are_named(make_model):
    with pytest.raises(ModelError, match="'some' is unknown: choose one of none, selective, all"):
        make_model().enable_gradient_checkpointing("some")


def test_gradient_checkpointing_recomputes_motion_modules_too(make_model):
    model = make_model()
    modules = [module for module in model.modules() if isinstance(module, MotionModule)]

    def calls() -> tuple[int, int]:
        """How many are called as a whole and in their blocks by a function of the level."""
        wholes = sum(module.checkpoint_function is not None for module in modules)
        return wholes, sum(module.block_function is not None for module in modules)

    assert calls() == (0, 0)
    model.enable_gradient_checkpointing("all")
    assert calls() == (len(modules) - 1, 0)  # diffusers itself checkpoints that of the middle block
    model.enable_gradient_checkpointing("selective")
    assert calls() == (0, len(modules))
    model.enable_gradient_checkpointing("none")
    assert calls() == (0, 0)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING_LEVELS)
def test_a_forward_pass_that_is_never_followed_by_a_backward_leaves_nothing_behind(
    make_model, make_inputs, checkpointing
):
    model = make_model()
    model.enable_gradient_checkpointing(checkpointing)
    inputs = make_inputs()
    bank = model.encode_reference(inputs["reference_latents"], inputs["image_tokens"])
    tensors = [weakref.ref(tensor) for tensor in bank.values()]
    del bank
    gc.collect()
    assert not any(tensor() is not None for tensor in tensors)


@pytest.mark.parametrize("checkpointing", ["selective", "all"])
def test_calls_do_not_share_state(make_model, make_inputs, checkpointing):
    """Two forward passes before one backward, as in accumulation, equal two separate ones."""
    model = make_model()
    model.enable_gradient_checkpointing(checkpointing)
    first, second = make_inputs(seed=3), make_inputs(seed=4)
    separate = gradients(model, first), gradients(model, second)
    model.zero_grad()
    (model(**first).square().mean() + model(**second).square().mean()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                parameter.grad, separate[0][name] + separate[1][name], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("checkpointing", ["selective", "all"])
def test_gradient_checkpointing_with_music_alone(make_model, make_inputs, checkpointing):
    model = make_model(types=["music"], channels=[3])
    model.enable_gradient_checkpointing(checkpointing)
    assert gradients(model, make_inputs(guidance={"music": torch.randn(2, 3, 3)}))
