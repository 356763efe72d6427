"""Feed-forward layers of the denoising UNets, which sample faster on a CPU.

GEGLU makes eight times its tokens. As a whole that leaves a core's cache and comes from fresh pages; token by
token the layer is the same, so without gradients it goes over them in pieces.
"""

import torch
from diffusers.models.attention import BasicTransformerBlock, FeedForward
from torch import Tensor, nn

from models.recomputation.feed_forward import CPU_TOKENS


class FeedForwardInPieces(FeedForward):
    """diffusers' layer with its weights. With gradients it is called as a whole: see models/recomputation."""

    def __init__(self, stock: FeedForward):
        nn.Module.__init__(self)
        self.net = stock.net

    def forward(self, hidden_states: Tensor, *args, **kwargs) -> Tensor:
        """Return [N, L, C] of the same."""
        num_pieces = -(-hidden_states.shape[:-1].numel() // CPU_TOKENS)
        is_whole = torch.is_grad_enabled() or hidden_states.device.type != "cpu" or num_pieces < 2
        if is_whole or torch.compiler.is_compiling():
            return super().forward(hidden_states, *args, **kwargs)
        # Of one size: some products round otherwise for a handful of rows.
        pieces = hidden_states.flatten(0, -2).tensor_split(num_pieces)
        output = torch.cat([super(FeedForwardInPieces, self).forward(piece) for piece in pieces])
        return output.unflatten(0, hidden_states.shape[:-1])


def take_pieces(unet: nn.Module) -> None:
    """Let the feed-forward layers of a UNet's transformer blocks go over their tokens in pieces."""
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock):
            block.ff = FeedForwardInPieces(block.ff)
