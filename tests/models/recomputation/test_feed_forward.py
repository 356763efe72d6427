"""The feed-forward layer that recomputes its activations: diffusers' numbers, and less kept."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch.utils._python_dispatch import TorchDispatchMode

from models.recomputation import levels
from models.recomputation.feed_forward import CPU_TOKENS, feed_forward, has_gated_feed_forward


def make_block(**options) -> BasicTransformerBlock:
    torch.manual_seed(0)
    block = BasicTransformerBlock(32, 4, 8, **options)
    for parameter in block.norm3.parameters():
        torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return block


def stock(block: BasicTransformerBlock, tokens: torch.Tensor) -> torch.Tensor:
    return block.ff(block.norm3(tokens))


def run(layer, block, tokens, precision=torch.float32) -> dict[str, torch.Tensor]:
    """The output and all gradients, in float32."""
    block.zero_grad()
    tokens = tokens.clone().requires_grad_()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        output = layer(block, tokens)
    output.float().mul(torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    found = {name: parameter.grad for name, parameter in block.named_parameters()}
    found = {name: gradient for name, gradient in found.items() if gradient is not None}
    return {"output": output.detach().float(), "tokens": tokens.grad.float(), **found}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("frozen", [(), ("norm3",), ("ff",), ("norm3", "ff"), ("ff.net.2",)])
@pytest.mark.parametrize("num_tokens", [7, CPU_TOKENS + 5])
def test_the_numbers_are_those_of_diffusers(frozen, num_tokens):
    block = make_block()
    for name in frozen:
        block.get_submodule(name).requires_grad_(False)
    tokens = torch.randn(2, num_tokens, 32)
    expected, found = run(stock, block, tokens), run(feed_forward, block, tokens)
    assert set(found) == set(expected)
    torch.testing.assert_close(found["output"], expected["output"], atol=0, rtol=0)
    assert max(relative_error(found[name], expected[name]) for name in expected) < 1e-5


@pytest.mark.parametrize("tokens_precision", [torch.float32, torch.bfloat16])
def test_half_precision_is_as_near_to_float32_as_diffusers(tokens_precision):
    block, tokens = make_block(), torch.randn(2, 300, 32).to(tokens_precision)
    exact = run(stock, block, tokens.float())
    expected, found = (run(layer, block, tokens, torch.bfloat16) for layer in (stock, feed_forward))
    torch.testing.assert_close(found["output"], expected["output"], atol=0, rtol=0)
    for name in exact:
        error = relative_error(found[name], exact[name])
        assert error < 1.25 * relative_error(expected[name], exact[name]), name
    for parameter in block.parameters():
        assert parameter.grad is None or parameter.grad.dtype == torch.float32


def test_only_the_tokens_are_kept():
    block, tokens = make_block(), torch.randn(2, 100, 32, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved) or saved, lambda saved: saved
    ):
        feed_forward(block, tokens)
    weights = {parameter.data_ptr() for parameter in block.parameters()}
    assert [saved.shape for saved in kept if saved.data_ptr() not in weights] == [tokens.shape]


def test_the_second_product_is_computed_once():
    counts = {(256, 32): 0, (32, 128): 0}  # of the weights as they lie: both products in their forward sense

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            if operation.overloadpacket is torch.ops.aten.addmm and tuple(args[2].t().shape) in counts:
                counts[tuple(args[2].t().shape)] += 1
            return operation(*args, **(kwargs or {}))

    block, tokens = make_block().requires_grad_(False), torch.randn(2, 8, 32, requires_grad=True)
    with Products():
        feed_forward(block, tokens).sum().backward()
    assert counts == {(256, 32): 2, (32, 128): 1}


@pytest.mark.parametrize(
    "options", [{"activation_fn": "gelu"}, {"dropout": 0.1}, {"ff_bias": False}, {"final_dropout": True}]
)
def test_other_layers_are_left_to_pytorch(options):
    block = make_block(**options)
    assert has_gated_feed_forward(make_block()) and not has_gated_feed_forward(block)
    tokens = torch.randn(2, 8, 32)
    call = levels.checkpoint_function("selective")

    def seeded(layer):
        torch.manual_seed(1)  # dropout
        return run(layer, block, tokens)

    expected = seeded(lambda block, tokens: block(tokens))
    for name, value in seeded(lambda block, tokens: call(block, tokens)).items():
        torch.testing.assert_close(value, expected[name], atol=0, rtol=0)
