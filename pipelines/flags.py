"""Flags of every script that samples with a trained model: one name, help and default each."""

import argparse
from collections.abc import Callable

from system.command_line import number
from system.errors import ConfigError

MOST_STEPS = 1000  # as many noise levels as training has


def add_input_flags(add: Callable) -> None:
    """Add how guidance is read, and frames are fitted."""
    # fmt: off
    add("--guidance_modules", nargs="+", default=[], help="your modules that register guidance encoders")
    add("--music_feature_fps", type=number(float, 0, above=True),
        help="music rows per second, where it is not one row per frame")
    add("--fit", choices=("auto", "crop", "pad"),
        help="crop or pad what has another shape (default: as trained)")
    # fmt: on


def add_sampling_flags(add: Callable, *, seed: str, context_frames: str) -> None:
    """Add how the model samples, and on what. seed, context_frames: their help, which scripts word apart."""
    positive = number(int, 1)
    # fmt: off
    add("--num_inference_steps", type=positive, default=25, help="sampling steps (default: 25)")
    add("--guidance_scale", type=number(float, 0), default=3.5,
        help="classifier-free guidance (default: 3.5)")
    add("--seed", type=number(int, 0), default=42, help=f"{seed} (default: 42)")
    add("--context_frames", type=positive, help=context_frames)
    add("--context_overlap", type=number(int, 0), help="frames that windows share (default: a quarter)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="autocast (default: no)")
    add("--device", help="cuda, cuda:1, cpu, ... (default: a GPU where there is one)")
    add("--enable_xformers_memory_efficient_attention", action="store_true",
        help="attention by xformers instead of PyTorch")
    # fmt: on


def check_sampling_flags(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for values that no model can sample with."""
    if arguments.resolution is not None and len(arguments.resolution) > 2:
        raise ConfigError("--resolution: give one side, or a height and a width")
    if arguments.num_inference_steps > MOST_STEPS:
        raise ConfigError(f"--num_inference_steps: there are {MOST_STEPS} steps at most")
