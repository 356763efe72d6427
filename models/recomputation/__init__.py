"""Gradient checkpointing: what the backward pass recomputes instead of keeping it.

`selective`, the default, is nearly all of this folder: on one CPU thread it takes 0.98 to 1.02 times the time
of `none`, on two 1.10, and SD 1.5's motion stage at 512 with 32 frames is simulated to take 30.3 GB for 65.9
(benchmarks/RESULTS.md). No GPU has timed it yet. Where one finds PyTorch's own as good, all but the levels
`none` and `all` of `levels.py` can go: nothing outside imports more than what stands here.
"""

from .levels import CHECKPOINTING_LEVELS, call_recomputed, checkpoint_function, takes_blocks
from .saved_tensors import recomputed

__all__ = ["CHECKPOINTING_LEVELS", "call_recomputed", "checkpoint_function", "recomputed", "takes_blocks"]
