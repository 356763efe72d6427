"""Bytes held, to the byte, where they can be worked out by hand; the same with storage and without."""

import contextlib
import functools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from training.planning.memory_tracking import MemoryTracker

WIDTH, ROWS, LAYERS = 64, 256, 4
WEIGHT, ACTIVATION = 4 * WIDTH * WIDTH, 4 * ROWS * WIDTH
SCALAR = 4


def chain() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))


with_and_without_storage = pytest.mark.parametrize("mode", [FakeTensorMode, contextlib.nullcontext])


@with_and_without_storage
def test_a_chain_of_linear_layers(mode):
    with mode(), MemoryTracker("cpu") as tracker:
        layers = chain()
        tracker.count(layers.parameters(), "weights")
        inputs = torch.empty(ROWS, WIDTH)
        tracker.phase = "forward"
        loss = layers(inputs).sum()
        # The backward pass needs the input of every layer; the last one's output is gone.
        held = {"weights": LAYERS * WEIGHT, "gradients": 0, "optimizer": 0}
        assert tracker.held == {**held, "activations": LAYERS * ACTIVATION + SCALAR}
        assert tracker.peak == {**held, "activations": (LAYERS + 1) * ACTIVATION + SCALAR}
        for parameter in layers.parameters():
            parameter.register_post_accumulate_grad_hook(
                lambda parameter: tracker.count([parameter.grad], "gradients")
            )
        tracker.phase = "backward"
        loss.backward()
        held["gradients"] = LAYERS * WEIGHT
        assert tracker.held == {**held, "activations": ACTIVATION + SCALAR}  # inputs and loss
        assert tracker.peak_phase == "backward"
        tracker.phase = "optimizer"
        torch.optim.AdamW(layers.parameters(), fused=True).step()
        del loss
        assert tracker.held["activations"] == ACTIVATION  # the optimizer is gone, and its states with it


@with_and_without_storage
def test_views_and_what_is_saved_twice_count_once(mode):
    with mode(), MemoryTracker("cpu") as tracker:
        weight = torch.empty(WIDTH, requires_grad=True)
        product = weight * 2
        squares = [product.square() for _ in range(3)]  # each saves `product`
        views = [product[:3], product.view(8, 8).t()]
        assert tracker.held["activations"] == 4 * WIDTH * (1 + 1 + 3)
        del product, squares, views
        assert tracker.held["activations"] == 4 * WIDTH


@with_and_without_storage
@pytest.mark.parametrize("level", ["none", "all", "selective"])
def test_checkpointing_keeps_what_it_says(mode, level):
    def keeps_products(context, operation, *args, **kwargs):
        is_product = operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return CheckpointPolicy.MUST_SAVE if is_product else CheckpointPolicy.PREFER_RECOMPUTE

    def block(inputs):  # saves its inputs, the product for the sine, the sine for the square
        return (inputs @ weight).sin().square()

    with mode(), MemoryTracker("cpu") as tracker:
        weight = torch.empty(WIDTH, WIDTH, requires_grad=True)
        inputs = torch.empty(ROWS, WIDTH)
        contexts = functools.partial(create_selective_checkpoint_contexts, keeps_products)
        options = {"context_fn": contexts} if level == "selective" else {}
        if level == "none":
            output = block(inputs)
        else:
            output = checkpoint(block, inputs, use_reentrant=False, **options)
        kept = {"none": 4, "all": 2, "selective": 3}[level]  # inputs and output among them
        assert tracker.held["activations"] == WEIGHT + kept * ACTIVATION
        output.sum().backward()
        del output
        assert tracker.held["activations"] == WEIGHT + WEIGHT + ACTIVATION


def test_memory_of_another_device_is_not_counted():
    with MemoryTracker("cuda") as tracker:
        torch.empty(1000)
        assert sum(tracker.held.values()) == 0
