"""The feed-forward layer in pieces is the layer as a whole."""

import pytest
import torch
from diffusers.models.attention import FeedForward

from models.champ import feed_forward
from models.champ.feed_forward import FeedForwardInPieces


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 700, 32), (1025, 2, 64), (2, 3, 32)])
def test_pieces_make_the_whole(shape, precision):
    torch.manual_seed(0)
    stock = FeedForward(shape[-1], activation_fn="geglu")
    layer, tokens = FeedForwardInPieces(stock), torch.randn(shape)
    assert layer.state_dict().keys() == stock.state_dict().keys()
    sizes = []
    stock.net[2].register_forward_hook(lambda layer, inputs, output: sizes.append(output.shape[:-1].numel()))
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        expected = layer(tokens)  # with gradients
        with torch.no_grad():
            found = layer(tokens)
    num_tokens = shape[0] * shape[1]
    assert sizes[0] == sum(sizes[1:]) == num_tokens
    assert max(sizes[1:]) <= feed_forward.CPU_TOKENS and min(sizes[1:]) >= min(num_tokens, 256)
    torch.testing.assert_close(found, expected.detach(), atol=1e-6, rtol=1e-6)


def test_both_denoising_unets_take_pieces(make_model):
    for motion_modules in (True, False):
        layers = [
            m for m in make_model(motion_modules=motion_modules).unet.modules() if isinstance(m, FeedForward)
        ]
        assert layers and all(isinstance(layer, FeedForwardInPieces) for layer in layers)
