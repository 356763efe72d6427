"""Tensors made again in the backward pass: the same gradients, nothing of them kept."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

from models.champ import reference_attention
from models.champ.reference_attention import attend, attend_with_reference, join_reference
from models.recomputation.saved_tensors import made_again
from training.planning.memory_tracking import MemoryTracker


def test_the_backward_pass_makes_them_again():
    calls = []
    source = torch.rand(3, 4, requires_grad=True)

    def double() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return 2 * source

    with made_again(source) as keep_maker:
        doubled = keep_maker(double(), double)
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
    with made_again(middle):
        output = operation(middle)
    held = weakref.ref(middle)
    del middle, output
    gc.collect()
    assert held() is None


def test_a_dropped_tensor_lends_its_place_to_no_other():
    def fail() -> torch.Tensor:
        raise AssertionError("made for another tensor")

    source = torch.rand(4, 4, requires_grad=True)
    with made_again(source) as keep_maker:
        outputs = []
        for _ in range(300):
            keep_maker(torch.zeros(4, 4), fail)  # nobody else holds it: its address is free again
            outputs.append((2 * source) ** 2)
    sum(outputs).sum().backward()
    torch.testing.assert_close(source.grad, 300 * 8 * source.detach(), rtol=1e-4, atol=1e-4)


def test_autocast_is_that_of_the_first_time():
    source = torch.rand(4, 4, requires_grad=True)
    precisions = []

    def product() -> torch.Tensor:
        precisions.append((source @ source).dtype)
        return 2 * source.exp()

    with torch.autocast("cpu", torch.bfloat16), made_again(source) as keep_maker:
        output = keep_maker(product(), product) ** 2
    output.sum().backward()
    assert set(precisions) == {torch.bfloat16} and len(precisions) > 1


@pytest.mark.parametrize(("num_heads", "fills"), [(1, True), (4, False), (4, True)])  # heads of 32 and of 8
def test_joined_keys_and_values_are_not_kept(monkeypatch, num_heads, fills):
    monkeypatch.setattr(reference_attention, "FILLS_NARROW_HEADS", fills)
    torch.manual_seed(0)
    names = ("query", "key", "value", "reference_key", "reference_value")
    shapes = [(6, 64, 32)] * 3 + [(2, 64, 32)] * 2
    inputs = {name: torch.randn(shape) for name, shape in zip(names, shapes, strict=True)}
    mask = torch.tensor([True, False])

    def joined(query, key, value, reference_key, reference_value):
        keys, values = join_reference(key, reference_key, mask), join_reference(value, reference_value, mask)
        return attend(query, keys, values, num_heads, "sdpa")

    def apart(query, key, value, *reference):
        return attend_with_reference(query, (key, value), reference, mask, num_heads, "sdpa")

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
    is_filled = num_heads == 4 and fills
    filled_bytes = 2 * joined_bytes + 6 * 64 * 64 * 4 if is_filled else 0  # the query's too
    assert held[0] - held[1] == 2 * joined_bytes + filled_bytes
