"""Which blocks of a ChampModel a training compiles; how is in models/compilation.py."""

from collections.abc import Callable

from torch import nn

from models import compilation


def compile_blocks(
    model: nn.Module, say: Callable[[str], None], *, single_frames: bool, backend: str = "inductor"
) -> None:
    """Let the UNets' blocks be compiled when a training step first calls them; `say` gets lines on it."""
    unets = compiled_unets(model, single_frames=single_frames)
    compilation.compile_blocks(unets, say, training=True, backend=backend)


def compiled_unets(model: nn.Module, *, single_frames: bool) -> list[nn.Module]:
    """Return the UNets whose blocks are compiled.

    The reference UNet sees one image per clip: it is one of them where clips are `single_frames`;
    elsewhere it takes a few hundredths of a step.
    """
    return [model.unet, model.reference_unet] if single_frames else [model.unet]
