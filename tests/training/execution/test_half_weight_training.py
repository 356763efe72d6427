"""A motion stage whose frozen weights are in half precision: what it logs, shows and saves is the same."""

import shutil

import pytest
from safetensors.torch import load_file

from tests.training.runs import (
    assert_same_bits,
    final_weights,
    run,
    scalars,
)
from training.execution import half_weights


@pytest.fixture
def motion_flags(flags, tmp_path):
    stage1 = tmp_path / "stage1"
    assert run(flags, "--training_stage", "image", "--output_dir", stage1, "--max_train_steps", 1) == 0
    motion = ("--training_stage", "motion", "--champ_checkpoint_dir", stage1 / "final")
    return [
        *flags,
        *map(str, motion),
        "--mixed_precision",
        "bf16",
        "--learning_rate",
        "1e-3",
        "--use_ema",
        "--guidance_scale",
        "2.0",
    ]


def checkpoint_weights(out, step):
    return load_file(out / f"checkpoint-{step}" / "model.safetensors")


def test_nothing_is_rounded_in_what_is_saved(motion_flags, tmp_path, monkeypatch):
    out, losses, samples = tmp_path / "half", {}, {}
    for name in ("plain", "half"):
        monkeypatch.setattr(half_weights, "saves_memory", lambda device, name=name: name == "half")
        folders = ["--output_dir", tmp_path / name, "--logging_dir", tmp_path / f"logs_{name}"]
        assert run(motion_flags, *folders, "--save_steps", 1, "--validation_steps", 1) == 0
        losses[name] = [scalars(tmp_path / f"logs_{name}", tag) for tag in ("train_loss", "val_loss")]
        videos = sorted((tmp_path / name / "samples").rglob("*.mp4"))
        samples[name] = [path.read_bytes() for path in videos]
    assert losses["half"] == losses["plain"]
    assert samples["half"] == samples["plain"] and len(samples["half"]) == 2
    whole = final_weights(out)
    assert_same_bits(whole, final_weights(tmp_path / "plain"))
    assert_same_bits(checkpoint_weights(out, 2), checkpoint_weights(tmp_path / "plain", 2))

    shutil.rmtree(out / "checkpoint-2")
    assert run(motion_flags, *folders, "--resume_from_checkpoint", "latest") == 0
    assert_same_bits(final_weights(out), whole)
