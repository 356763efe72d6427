"""What commit 90082ed wrote, and what users wrote for it, loads, samples, resumes and trains as it did there.

`fixtures/from_90082ed/make.py` made the files, with that commit's own code, and says how.
"""

import importlib.util
import json
import runpy
import shlex
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models import ChampModel, guidance_encoder
from pipelines.champ_pipeline import ChampPipeline

REPOSITORY = Path(__file__).resolve().parents[1]
FIXTURE = Path(__file__).parent / "fixtures" / "from_90082ed"
# Nothing differs on the machine that made them; other processors add up in another order.
CLOSE = {"rel": 1e-5, "abs": 1e-6}


def load_maker():
    spec = importlib.util.spec_from_file_location("from_90082ed", FIXTURE / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


maker = load_maker()
expected = json.loads((FIXTURE / "expected.json").read_text())


@pytest.fixture(scope="module")
def old_run(tmp_path_factory) -> Path:
    """A folder with the old run, its data, and a base model of the same shapes."""
    path = tmp_path_factory.mktemp("from_90082ed")
    with tarfile.open(FIXTURE / "run.tar.xz") as archive:
        archive.extractall(path, filter="data")
    maker.write_unet(path / "base")
    maker.take_frozen_networks(path)
    return path


@pytest.fixture(autouse=True)
def in_old_run(old_run, monkeypatch):
    monkeypatch.chdir(old_run)


def test_the_final_model_loads():
    model = ChampModel.from_pretrained("run/final")
    pipeline = ChampPipeline.from_pretrained("run/final")
    assert model.has_motion_modules and model.guidance_encoders.guidance_types == ["music", "pose"]
    for part in ("unet", "reference_unet", "guidance_encoders"):
        saved = load_file(f"run/final/{part}/diffusion_pytorch_model.safetensors")
        for module in (getattr(model, part), getattr(pipeline, part)):
            loaded = module.state_dict()
            assert loaded.keys() == saved.keys()
            assert all(torch.equal(loaded[key], tensor) for key, tensor in saved.items())


def test_it_samples_the_same_frames():
    assert maker.sample(maker.SAMPLING) == pytest.approx(expected["frames"], **CLOSE)


def test_the_checkpoint_resumes_with_the_same_losses(capsys):
    losses = maker.train(maker.RESUMED)
    assert "resumed from run/checkpoint-2, step 2" in capsys.readouterr().err
    for name, values in expected["resumed"].items():
        assert losses[name] == pytest.approx(values, **CLOSE), name


def test_the_final_model_starts_a_stage():
    losses = maker.train(maker.NEXT_STAGE)
    for name, values in expected["next_stage"].items():
        assert losses[name] == pytest.approx(values, **CLOSE), name


def test_a_users_encoders_train(monkeypatch):
    """As a script, in which `train_guidance` is both the program and what the user's file imports."""
    monkeypatch.setattr(guidance_encoder, "_REGISTRY", dict(guidance_encoder._REGISTRY))
    for name in ("dance_001", "dance_002"):
        Path("data/inverse_depth", name).mkdir(parents=True)
        Path("data/energy").mkdir(exist_ok=True)
        np.save(f"data/energy/{name}.npy", np.arange(maker.NUM_FRAMES, dtype=np.float32)[:, None])
        for number in range(maker.NUM_FRAMES):
            depth = np.full((maker.SIZE, maker.SIZE), 40 * number, np.uint8)
            Image.fromarray(depth).save(f"data/inverse_depth/{name}/frame_{number:03d}.png")
    flags = (
        f"{maker.TRAINING} --guidance_types music pose energy inverse_depth "
        f"--guidance_input_channels {maker.NUM_MUSIC_FEATURES} {maker.NUM_KEY_POINTS} 1 1 "
        f"--guidance_modules {FIXTURE / 'my_guidance.py'} --output_dir own --max_train_steps 1"
    )
    monkeypatch.setattr(sys, "argv", ["train_guidance.py", *shlex.split(flags)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(REPOSITORY / "train_guidance.py"), run_name="__main__")
    assert end.value.code == 0
    weights = load_file("own/final/guidance_encoders/diffusion_pytorch_model.safetensors")
    assert weights["projections.energy.weight"].any() and weights["encoders.energy.mean"].item() == 2.5
    assert weights["encoders.inverse_depth.conv_out.weight"].any()  # zero before its first update
