"""Tensors recomputed in the backward pass: the same gradients, nothing of them kept."""

import functools
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from models.champ.attention_backend import attend, attend_recomputed
from models.champ.reference_attention import join_reference
from models.recomputation import recomputed
from training.planning.memory_tracking import MemoryTracker


def test_the_backward_pass_recomputes_them():
    calls = []
    source = torch.rand(3, 4, requires_grad=True)

    def double() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return 2 * source

    with recomputed(source) as recompute_with:
        doubled = recompute_with(double(), double)
        outputs = (doubled**2).sum(), doubled[1:].t().exp().sum()
    held = weakref.ref(doubled)
    del doubled
    gc.collect()
    assert held() is None and calls == [True]
    sum(outputs).backward()
    expected = 8 * source
    expected[1:] += 2 * (2 * source[1:]).exp()
    torch.testing.assert_close(source.grad, expected.detach())
    assert calls[1:] and not any(calls[1:])


@pytest.mark.parametrize(
    "operation",
    [lambda tokens: F.group_norm(tokens, 2), lambda tokens: F.scaled_dot_product_attention(*3 * [tokens])],
)
def test_a_graph_without_a_backward_pass_goes_where_an_operation_keeps_its_own_output(operation):
    middle = 2 * torch.rand(1, 2, 4, 8, requires_grad=True)
    with recomputed(middle):
        output = operation(middle)
    held = weakref.ref(middle)
    del middle, output
    gc.collect()
    assert held() is None


def test_a_dropped_tensor_lends_its_place_to_no_other():
    def fail() -> torch.Tensor:
        raise AssertionError("made for another tensor")

    source = torch.rand(4, 4, requires_grad=True)
    with recomputed(source) as recompute_with:
        outputs = []
        for _ in range(300):
            recompute_with(torch.zeros(4, 4), fail)  # nobody else holds it: its address is free again
            outputs.append((2 * source) ** 2)
    sum(outputs).sum().backward()
    torch.testing.assert_close(source.grad, 300 * 8 * source.detach(), rtol=1e-4, atol=1e-4)


def test_autocast_is_that_of_the_first_time():
    source = torch.rand(4, 4, requires_grad=True)
    precisions = []

    def product() -> torch.Tensor:
        precisions.append((source @ source).dtype)
        return 2 * source.exp()

    with torch.autocast("cpu", torch.bfloat16), recomputed(source) as recompute_with:
        output = recompute_with(product(), product) ** 2
    output.sum().backward()
    assert set(precisions) == {torch.bfloat16} and len(precisions) > 1


@pytest.mark.parametrize("num_heads", [1, 4])
def test_joined_keys_and_values_are_not_kept(num_heads):
    torch.manual_seed(0)
    names = ("query", "key", "value", "reference_key", "reference_value")
    shapes = [(6, 64, 32)] * 3 + [(2, 64, 32)] * 2
    inputs = {name: torch.randn(shape) for name, shape in zip(names, shapes, strict=True)}
    mask = torch.tensor([True, False])

    def joined(query, key, value, reference_key, reference_value):
        keys, values = join_reference(key, reference_key, mask), join_reference(value, reference_value, mask)
        return attend(query, keys, values, num_heads, "sdpa")

    def apart(query, key, value, reference_key, reference_value):
        pairs = (key, reference_key), (value, reference_value)
        makers = (functools.partial(join_reference, *pair, mask) for pair in pairs)
        return attend_recomputed(query, *makers, num_heads, "sdpa")

    results, held = [], []
    for function in (joined, apart):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs.values()]
        with MemoryTracker("cpu") as tracker:
            output = function(*leaves)
        held.append(tracker.held["activations"])
        output.square().sum().backward()
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, expected, atol=0, rtol=0)
    joined_bytes = 6 * 128 * 32 * 4
    assert held[0] - held[1] == 2 * joined_bytes
