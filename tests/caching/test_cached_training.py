"""Training from the latent cache: the same losses as without it, and what it does when things change."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from datasets import GuidanceDataset, write_video
from tests.training.runs import (
    assert_same_bits,
    final_weights,
    run,
    scalars,
    train_in_two_processes,
)
from training.planning import dry_run

TAGS = ("train_loss", "val_loss", "val_loss_region/hands", "val_loss_region/elsewhere")


@pytest.fixture
def wide_data(tmp_path, write_data):
    """Two wide videos, so that there is something to crop, with depth beside music and pose."""
    root = write_data(tmp_path / "wide", num_videos=2)
    for path in (root / "videos").iterdir():
        frames = np.random.default_rng(0).integers(0, 255, (12, 64, 96, 3)).astype(np.uint8)
        write_video(path, frames, frame_rate=8)
        folder = root / "depth" / path.stem
        folder.mkdir(parents=True)
        for number in range(12):
            picture = np.full((32, 48), 10 * number, np.uint8)
            picture[number : number + 9, 5:20] = 200
            Image.fromarray(picture).save(folder / f"frame_{number:03d}.png")
    return root


@pytest.fixture
def own_data(tiny_data, tmp_path):
    """A copy of the data to be changed."""
    return shutil.copytree(tiny_data, tmp_path / "data")


@pytest.fixture
def no_memory_lines(monkeypatch):
    """Leave the simulated step out of a dry run: it takes seconds, and is not asked for here."""
    monkeypatch.setattr(dry_run, "memory_lines", lambda *_, **__: [])


def cached_files(folder):
    return sorted(folder.rglob("*.safetensors"))


@pytest.mark.parametrize(("vae", "data_format"), [("kl", "video"), ("tiny", "video"), ("kl", "image")])
def test_the_same_losses_as_without_it(flags, tmp_path, wide_data, tiny_kl, vae, data_format):
    more = [
        "--train_data_dir", wide_data, "--guidance_types", "music", "pose", "depth",
        "--guidance_input_channels", 35, 134, 1, "--train_batch_size", 2, "--max_train_steps", 2,
        "--train_data_format", data_format, "--frame_stride", 2, "--fit", "crop",
        "--region_weights", "hands=3", "face=2",
        *(["--vae_model_name_or_path", tiny_kl / "vae"] if vae == "kl" else []),
    ]  # fmt: skip
    losses = {}
    for name, how in (("plain", "--center_crop"), ("cached", "--cache_latents")):
        folders = ["--output_dir", tmp_path / name, "--logging_dir", tmp_path / f"logs_{name}"]
        assert run(flags, *more, how, *folders) == 0
        losses[name] = [scalars(tmp_path / f"logs_{name}", tag) for tag in TAGS]
    assert losses["cached"] == losses["plain"]
    assert_same_bits(final_weights(tmp_path / "cached"), final_weights(tmp_path / "plain"))
    assert len(cached_files(tmp_path / "cached" / "latent_cache")) == 2


def test_the_motion_stage_from_cached_features(flags, tmp_path, wide_data, capsys, no_memory_lines):
    shared = ["--train_data_dir", wide_data, "--guidance_types", "music", "pose", "depth",
              "--guidance_input_channels", 35, 134, 1, "--train_batch_size", 2]  # fmt: skip
    assert run(flags, *shared, "--training_stage", "image", "--output_dir", tmp_path / "image") == 0
    motion = [*shared, "--training_stage", "motion", "--champ_checkpoint_dir", tmp_path / "image" / "final",
              "--cache_latents", "--cache_dir", tmp_path / "cache", "--guidance_dropout", 0.4,
              "--region_weights", "hands=3"]  # fmt: skip
    losses = {}
    for name, more in (("plain", []), ("cached", ["--cache_features"]), ("again", ["--cache_features"])):
        folders = ["--output_dir", tmp_path / name, "--logging_dir", tmp_path / f"logs_{name}"]
        capsys.readouterr()
        assert run(flags, *motion, *more, *folders) == 0
        losses[name] = [scalars(tmp_path / f"logs_{name}", tag) for tag in ("train_loss", "val_loss")]
        assert ("feature cache: 2 samples written" in capsys.readouterr().err) == (name == "cached")
    assert losses["cached"] == losses["plain"] == losses["again"]
    for name in ("cached", "again"):
        assert_same_bits(final_weights(tmp_path / name), final_weights(tmp_path / "plain"))
        picture = Image.open(tmp_path / name / "samples" / "first_batch.gif")
        assert picture.size == Image.open(tmp_path / "plain" / "samples" / "first_batch.gif").size
    assert len(cached_files(tmp_path / "cache" / "features")) == 2

    assert run(flags, *motion, "--cache_features", "--dry_run") == 0
    assert "GiB for the feature cache" in capsys.readouterr().out


def test_features_that_change_cannot_be_kept(flags, capsys):
    assert run(flags, "--cache_latents", "--cache_features") == 2
    assert "only the motion stage can keep them" in capsys.readouterr().err
    assert run(flags, "--cache_features") == 2
    assert "give --cache_latents too" in capsys.readouterr().err


def test_a_complete_cache_is_all_that_training_reads(flags, tmp_path, monkeypatch, capsys):
    cached = ("--cache_latents", "--cache_dir", tmp_path / "cache", "--max_train_steps", 1)
    assert run(flags, *cached) == 0
    console = capsys.readouterr().err
    assert "cropped alike, as with --center_crop" in console and "3 samples written" in console

    def decoded(*_):
        raise AssertionError("a video is decoded")

    monkeypatch.setattr(GuidanceDataset, "__getitem__", decoded)
    monkeypatch.setattr(GuidanceDataset, "read_whole", decoded)
    assert run(flags, *cached, "--output_dir", tmp_path / "two", "--num_workers", 1) == 0
    assert "samples written" not in capsys.readouterr().err
    assert_same_bits(final_weights(tmp_path / "out"), final_weights(tmp_path / "two"))


def test_it_may_be_switched_on_and_off_at_a_resume(flags, tmp_path, capsys):
    whole = ("--max_train_steps", 4, "--center_crop", "--save_steps", 2)
    assert run(flags, *whole) == 0
    expected = final_weights(tmp_path / "out")
    for name in ("checkpoint-4", "final"):
        shutil.rmtree(tmp_path / "out" / name)
    assert run(flags, *whole, "--resume_from_checkpoint", "latest", "--cache_latents") == 0
    assert "cache_latents was False, now it is True" in capsys.readouterr().err
    assert_same_bits(final_weights(tmp_path / "out"), expected)


def test_what_is_stale_or_damaged_is_rebuilt_and_counted(flags, tmp_path, own_data, tiny_base, capsys):
    shutil.copytree(tiny_base / "vae", tmp_path / "vae" / "vae")
    more = ("--train_data_dir", own_data, "--cache_latents", "--cache_dir", tmp_path / "cache",
            "--vae_model_name_or_path", tmp_path / "vae", "--max_train_steps", 1)  # fmt: skip
    assert run(flags, *more) == 0
    pose = own_data / "poses" / "dance_001" / "frame_003.json"
    content = json.loads(pose.read_text())
    content["keypoints"][0] = [0.1, 0.2, 0.3]
    pose.write_text(json.dumps(content))
    damaged = next(path for path in cached_files(tmp_path / "cache") if "dance_002" in path.name)
    os.truncate(damaged, 1000)
    capsys.readouterr()
    assert run(flags, *more) == 0
    console = capsys.readouterr().err
    assert "1 of 3 samples are there" in console and "2 samples written, 2 of them rebuilt" in console
    assert "1 to rebuild, guidance/pose changed: dance_001" in console
    assert "1 to rebuild, damaged: dance_002" in console

    weights = next((tmp_path / "vae" / "vae").glob("*.safetensors"))
    save_file({name: 1.01 * value for name, value in load_file(weights).items()}, weights)
    assert run(flags, *more) == 0
    assert "other vae than in" in capsys.readouterr().err
    assert len(cached_files(tmp_path / "cache")) == 6  # the other VAE's are kept: a run may use them


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no forks")
def test_two_processes_build_it_together(flags, tmp_path):
    more = ("--cache_latents", "--max_train_steps", 1)
    assert run(flags, *more, "--train_batch_size", 1) == 0
    arguments = [*flags, *map(str, more), "--output_dir", str(tmp_path / "two")]
    console = tmp_path / "console.txt"
    assert train_in_two_processes(arguments, console) == 0, console.read_text()[-3000:]
    assert console.read_text().count("3 samples written") == 1
    one, two = (cached_files(tmp_path / name / "latent_cache") for name in ("out", "two"))
    assert [path.name for path in one] == [path.name for path in two] and len(one) == 3
    for path, other in zip(one, two, strict=True):
        assert_same_bits(load_file(path), load_file(other))


def test_a_full_disk_is_one_message(flags, tmp_path, monkeypatch, capsys):
    cached = ("--cache_latents", "--max_train_steps", 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 9))
    assert run(flags, *cached) == 2
    console = capsys.readouterr().err
    assert f"{tmp_path / 'out' / 'latent_cache'}: the latent cache needs" in console
    assert "MiB more, but the disk has 0.0 MiB free" in console and "Traceback" not in console
    assert not cached_files(tmp_path / "out" / "latent_cache")


def test_a_dry_run_tells_its_size(flags, tmp_path, capsys, no_memory_lines):
    assert run(flags, "--cache_latents", "--dry_run") == 0
    assert "GiB for the latent cache" in capsys.readouterr().out
    assert not (tmp_path / "out" / "latent_cache").exists()
