"""Flags of every script that samples with a trained model: one name, help and default each."""

import argparse
import math
from collections.abc import Callable

from system.command_line import number
from system.errors import ConfigError

from .schedulers import SCHEDULERS

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
    """Add how the model samples, and on what; the defaults are as a model is validated in training.

    seed, context_frames: their help, which scripts word apart.
    """
    positive = number(int, 1)
    # fmt: off
    add("--num_inference_steps", type=positive, default=25, help="sampling steps (default: 25)")
    add("--guidance_scale", type=number(float, 0), default=3.5,
        help="classifier-free guidance (default: 3.5)")
    add("--seed", type=number(int, 0), default=42, help=f"{seed} (default: 42)")
    add("--context_frames", type=positive, help=context_frames)
    add("--context_overlap", type=number(int, 0), help="frames that windows share (default: a quarter)")
    add("--scheduler", choices=SCHEDULERS, default=SCHEDULERS[0], help=f"solver (default: {SCHEDULERS[0]})")
    add("--guidance_scales", nargs="+", action="extend", type=_type_scale, default=[], metavar="TYPE=S",
        help="how much farther to go than without a guidance type; each costs a third call per step")
    add("--guidance_interval", nargs=2, type=number(float, 0, finite=False), metavar=("LOW", "HIGH"),
        help="noise levels sigma in which guidance is scaled, from 0 to inf (default: all)")
    add("--window_grids", type=int, choices=(1, 2), default=1,
        help="grids of windows in turn: with 2 no frame is always at an edge (default: 1)")
    add("--shared_noise", action="store_true", help="windows begin from the same noise, shuffled")
    add("--compile", action="store_true",
        help="compile the UNet's blocks: minutes once, then faster on a GPU")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="autocast (default: no)")
    add("--device", help="cuda, cuda:1, cpu, ... (default: a GPU where there is one)")
    add("--enable_xformers_memory_efficient_attention", action="store_true",
        help="attention by xformers instead of PyTorch")
    # fmt: on


def add_lora_flags(add: Callable) -> None:
    """Add the adapters that the model is loaded with."""
    # fmt: off
    add("--lora", nargs="+", default=[], metavar="PATH",
        help="adapters that were trained on the model with --lora_rank: OUTPUT_DIR/final, or the file in it")
    add("--lora_scale", nargs="+", type=_finite, default=[1.0], metavar="S",
        help="how much of them, 0 nothing: one for all, or one for each (default: 1)")
    # fmt: on


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: expected a finite number")
    return value


def lora_scales(arguments: argparse.Namespace) -> list[tuple[str, float]]:
    """Return the path and the scale of each adapter. Raises ConfigError where the flags do not fit."""
    paths, scales = arguments.lora, arguments.lora_scale
    if not paths and scales != [1.0]:
        raise ConfigError("--lora_scale: there is no --lora")
    if paths and len(scales) not in (1, len(paths)):
        counts = f"{len(scales)} scales for {len(paths)} adapter{'s' * (len(paths) > 1)}"
        raise ConfigError(f"--lora_scale: {counts}; give one for all, or one for each")
    return [*zip(paths, scales if len(scales) > 1 else len(paths) * scales, strict=True)]


def _type_scale(text: str) -> tuple[str, float]:
    """Return ("pose", 1.5) of "pose=1.5"."""
    name, _, scale = text.partition("=")
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: expected TYPE=S, for example pose=1.5")
    return name, value


def check_sampling_flags(arguments: argparse.Namespace) -> None:
    """Raise ConfigError for values that no model can sample with."""
    if arguments.resolution is not None and len(arguments.resolution) > 2:
        raise ConfigError("--resolution: give one side, or a height and a width")
    if arguments.num_inference_steps > MOST_STEPS:
        raise ConfigError(f"--num_inference_steps: there are {MOST_STEPS} steps at most")
    names = [name for name, _ in arguments.guidance_scales]
    if len(set(names)) < len(names):
        raise ConfigError("--guidance_scales: a type is given twice")
    if arguments.guidance_interval and arguments.guidance_interval[0] >= arguments.guidance_interval[1]:
        raise ConfigError("--guidance_interval: LOW must be less than HIGH")
    lora_scales(arguments)


def sampling_keywords(flags) -> dict:
    """Return {argument of ChampPipeline.__call__: value} of flags, parsed or as `SamplingSettings`."""
    interval = flags.guidance_interval
    return {
        "num_inference_steps": flags.num_inference_steps,
        "guidance_scale": flags.guidance_scale,
        "guidance_scales": dict(flags.guidance_scales),
        "guidance_interval": interval and tuple(interval),
        "context_frames": flags.context_frames,
        "context_overlap": flags.context_overlap,
        "window_grids": flags.window_grids,
        "shared_noise": flags.shared_noise,
    }
