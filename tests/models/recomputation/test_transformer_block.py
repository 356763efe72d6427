"""A transformer block that keeps less: diffusers' numbers under each autocast, and what is kept."""

from contextlib import nullcontext

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from models.champ.reference_attention import SelfAttention
from models.recomputation import checkpoint_function
from models.recomputation.transformer_block import call_keeping_less, can_keep_less
from training.planning.memory_tracking import MemoryTracker
from training.planning.stand_ins import cuda_autocast_rules

WIDTH = 64


def make_block() -> BasicTransformerBlock:
    """One of a motion module: two self-attentions, positions added to the norms."""
    torch.manual_seed(0)
    block = BasicTransformerBlock(
        WIDTH, 4, 16, double_self_attention=True,
        positional_embeddings="sinusoidal", num_positional_embeddings=128,
    )  # fmt: skip
    for attention in (block.attn1, block.attn2):
        attention.set_processor(SelfAttention())
    return block


def run(call, block, tokens, precision) -> tuple[dict[str, torch.Tensor], int]:
    """Output and gradients in float32, and the bytes held between the passes."""
    block.zero_grad()
    tokens = tokens.clone().requires_grad_()
    with (
        torch.autocast("cpu", precision, enabled=precision != torch.float32),
        MemoryTracker("cpu") as tracker,
    ):
        output = call(block, tokens)
        held = tracker.held["activations"]
    output.float().square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in block.named_parameters()}
    return {"output": output.detach().float(), "tokens": tokens.grad.float(), **gradients}, held


@pytest.mark.parametrize(
    ("precision", "rules"),
    [(torch.float32, nullcontext), (torch.bfloat16, nullcontext), (torch.bfloat16, cuda_autocast_rules)],
)
def test_the_numbers_are_those_of_diffusers(precision, rules):
    block, tokens = make_block(), torch.randn(2, 128, WIDTH).to(precision)
    assert can_keep_less(block)
    exact, _ = run(lambda block, tokens: block(tokens), block, tokens.float(), torch.float32)
    with rules():
        stock, stock_held = run(lambda block, tokens: block(tokens), block, tokens, precision)
        found, held = run(call_keeping_less, block, tokens, precision)
    torch.testing.assert_close(found["output"], stock["output"], atol=0, rtol=0)
    for name in exact:
        error, stock_error = (
            (some[name] - exact[name]).norm() / exact[name].norm() for some in (found, stock)
        )
        assert error < 1e-5 if precision == torch.float32 else error < 1.5 * stock_error, name
    # In sizes of the tokens; a norm's widened copy would be another 2, twice.
    assert held < 17 * tokens.nbytes and stock_held > 35 * tokens.nbytes


def test_masks_reach_the_attentions():
    """Nobody masks here, but an encoder of the user's own may."""
    torch.manual_seed(0)
    block = BasicTransformerBlock(WIDTH, 4, 16, cross_attention_dim=8)
    tokens, others = torch.randn(2, 5, WIDTH), torch.randn(2, 3, 8)
    own_mask, other_mask = (torch.randn(2, 1, length).sign().clamp(max=0) * 1e4 for length in (5, 3))
    arguments = tokens, own_mask, others, other_mask
    found = call_keeping_less(block, *arguments)
    torch.testing.assert_close(found, block(*arguments), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(found, block(tokens, None, others), atol=1e-2)
    assert not torch.allclose(found, block(tokens, own_mask, others), atol=1e-2)


@pytest.mark.parametrize("part", ["", "norm3", "ff.net.0.proj"])
@pytest.mark.parametrize(
    "kind",
    ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"],
)
def test_hooks_are_called(part, kind):
    block, calls = make_block(), []
    hook = getattr(block.get_submodule(part), f"register_{kind}")(lambda *_: calls.append(part))
    tokens = torch.randn(2, 8, WIDTH, requires_grad=True)
    checkpoint_function("selective")(block, tokens).sum().backward()
    assert calls and not can_keep_less(block)
    hook.remove()
    assert can_keep_less(block)


class LowRankLinear(nn.Linear):
    """An adapter as peft makes them: a linear layer whose weight is only a part of it."""

    def forward(self, tokens):
        return super().forward(tokens) + 1


def test_adapters_are_not_passed_over():
    block, tokens = make_block(), torch.randn(2, 8, WIDTH)
    plain = block(tokens)
    block.ff.net[2].__class__ = LowRankLinear
    torch.testing.assert_close(checkpoint_function("selective")(block, tokens), plain + 1)


@pytest.mark.parametrize("options", [{"only_cross_attention": True}, {"attention_type": "gated"}])
def test_blocks_of_other_kinds_are_left_to_pytorch(options):
    assert not can_keep_less(BasicTransformerBlock(WIDTH, 4, 16, cross_attention_dim=WIDTH, **options))
