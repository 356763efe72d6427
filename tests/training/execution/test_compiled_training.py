"""Training with --compile, for real: the same losses to rounding, and a resumed run ends with the same bits.

Only one block is compiled here: all of them would take minutes.
"""

import shutil
from types import SimpleNamespace

import pytest
import torch

from tests.training.runs import (
    assert_same_bits,
    final_weights,
    run,
    scalars,
)
from training.execution import compilation

has_compiler = any(map(shutil.which, ("g++", "clang++", "cl")))


@pytest.mark.skipif(not has_compiler, reason="no C++ compiler on this machine: nothing can be compiled")
def test_the_same_losses_and_a_resumed_run_has_the_same_bits(flags, tmp_path, monkeypatch, capsys):
    compile_blocks = compilation.compile_blocks

    def compile_one(model, say, single_frames):
        assert single_frames
        compile_blocks(SimpleNamespace(unet=model.unet.mid_block.resnets[0]), say, single_frames=False)

    monkeypatch.setattr(compilation, "compile_blocks", compile_one)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "code"))
    image = ("--training_stage", "image", "--save_steps", 2)
    losses = {}
    for name, how in (("plain", "--no-compile"), ("compiled", "--compile")):
        folders = ("--output_dir", tmp_path / name, "--logging_dir", tmp_path / f"logs_{name}")
        assert run(flags, *image, how, "--max_train_steps", 4, *folders) == 0
        losses[name] = scalars(tmp_path / f"logs_{name}", "train_loss")
    assert "compiling 1 of 1 blocks: " in capsys.readouterr().err
    assert losses["compiled"] == pytest.approx(losses["plain"], rel=1e-4)  # to rounding

    whole = final_weights(tmp_path / "compiled")
    shutil.rmtree(tmp_path / "compiled" / "checkpoint-4")
    torch._dynamo.reset()
    again = ("--resume_from_checkpoint", "latest", "--max_train_steps", 4, "--compile")
    assert run(flags, *image, *again, *folders) == 0
    assert "checkpoint-2, step 2" in capsys.readouterr().err
    assert_same_bits(final_weights(tmp_path / "compiled"), whole)
