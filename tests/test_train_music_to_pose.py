"""The trainer of dances end to end, on tiny data: what it writes, resumes, and refuses."""

import functools
import json
import re
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_music_to_pose
from datasets import VideoReader
from pipelines.music_to_pose_pipeline import MusicToPosePipeline
from tests.training import runs
from tests.training.runs import assert_same_bits, scalars, stop_after, train_in_two_processes
from training.checkpoints.saving import read_state
from training.music_to_pose.settings import MusicToPoseArguments, check_arguments
from training.settings.parsing import parse_arguments

run = functools.partial(runs.run, main=train_music_to_pose.main)


@pytest.fixture
def flags(tiny_data, tmp_path):
    """Flags of a quick run; validation only at its end."""
    settings = {
        "train_data_dir": tiny_data, "output_dir": tmp_path / "out", "logging_dir": tmp_path / "logs",
        "hidden_size": 16, "num_layers": 1, "num_heads": 2, "sequence_length": 8, "train_batch_size": 2,
        "num_workers": 0, "max_train_steps": 2, "lr_warmup_steps": 0, "validation_steps": 100,
        "num_validation_clips": 2, "num_inference_steps": 2,
    }  # fmt: skip
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def data(tiny_data, tmp_path):
    """A copy of the tiny data to break: poses and music, rates in the metadata, no video."""
    root = tmp_path / "data"
    for folder in ("poses", "music_features"):
        shutil.copytree(tiny_data / folder, root / folder)
    (root / "metadata").mkdir()
    for path in (root / "poses").iterdir():
        facts = {"frame_rate": 8, "music_features": {"name": "aist35", "channels": 35}}
        facts["poses"] = {"name": "dwpose", "key_points": 134}
        (root / "metadata" / f"{path.name}.json").write_text(json.dumps(facts))
    return root


def final_weights(out):
    return load_file(out / "final" / "model" / "diffusion_pytorch_model.safetensors")


def test_a_run_writes_what_is_promised(flags, data, tmp_path, capsys):
    more = (
        "--train_data_dir", data, "--max_train_steps", 3, "--validation_steps", 2, "--save_steps", 1,
        "--checkpoints_total_limit", 2, "--use_ema", "--keep_best", "val_loss",
        "--group_dropout", "timbre=0.5", "--guidance_scale", 1.5,
    )  # fmt: skip
    assert run(flags, *more) == 0
    out = tmp_path / "out"
    saved = sorted(path.name for path in out.glob("checkpoint-*"))
    assert saved == ["checkpoint-2", "checkpoint-3", "checkpoint-best"]
    assert not list(out.glob("*.tmp")) and (out / "data_report.json").is_file()
    parse = functools.partial(parse_arguments, kind=MusicToPoseArguments, check=check_arguments)
    assert parse(["--config", str(out / "config.yaml")]) == parse([*flags, *map(str, more)])

    # What it uses: the recipe's groups and beats, the statistics of the data, the averaged weights.
    pipeline = MusicToPosePipeline.from_pretrained(out / "final")
    model = pipeline.model
    assert (pipeline.config.music_recipe, pipeline.config.pose_recipe) == ("aist35", "dwpose")
    assert model.config.frame_rate == 8
    assert [*model.music_features.groups] == ["harmony", "rhythm", "timbre"]
    assert (model.music_std[:35] != 1).all() and (model.bone_limits < 100).all()
    averages = load_file(out / "checkpoint-3" / "ema.safetensors")
    parameters = enumerate(model.parameters())
    assert all(parameter.equal(averages[str(place)]) for place, parameter in parameters)
    pose = json.loads(next((data / "poses" / "dance_001").iterdir()).read_text())["keypoints"]
    music = np.load(data / "music_features/dance_001/frame_000.npy")[None].repeat(10, 0)
    assert pipeline(music, np.array(pose), num_inference_steps=1).key_points.shape == (1, 10, 134, 3)

    # What it says and shows.
    video = VideoReader(next((out / "samples" / "step-000002").glob("*.mp4")))
    assert len(video) == 12 and video.size[1] > 2.9 * 256
    events = EventAccumulator(str(tmp_path / "logs" / "out"), size_guidance={"images": 0})
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {
        "train_loss", "lr", "epoch", "step", "grad_norm/model", "samples_per_second", "val_loss",
        "val_loss/low", "val_loss/middle", "val_loss/high", "guidance_gap/music", "motion/jerk",
        "motion/fid_k", "motion/diversity", "motion/diversity_truth",
    }  # fmt: skip
    assert [image.step for image in events.Images("validation/panel")] == [2, 3]
    best = min(events.Scalars("val_loss"), key=lambda event: event.value)
    assert read_state(out / "checkpoint-best").step == best.step
    assert re.search(r"step 2: val_loss \S+, motion/speed \S+, .*gap/music", capsys.readouterr().err)


def test_a_stopped_run_resumes_to_the_same_bits(flags, tmp_path, monkeypatch, capsys):
    more = (
        "--max_train_steps", 4, "--use_ema", "--gradient_accumulation_steps", 2, "--lr_scheduler", "cosine",
        "--resume_from_checkpoint", "latest",
    )  # fmt: skip
    assert run(flags, *more) == 0
    whole, card = final_weights(tmp_path / "out"), (tmp_path / "out/final/README.md").read_bytes()
    shutil.rmtree(tmp_path / "out")
    stop_after(1, monkeypatch)
    assert run(flags, *more) == 143
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert run(flags, *more) == 0
    assert_same_bits(final_weights(tmp_path / "out"), whole)
    assert (tmp_path / "out/final/README.md").read_bytes() == card
    assert run(flags, *more, "--hidden_size", 32) == 2
    console = capsys.readouterr().err
    assert "trained with hidden_size = 16, now it is 32. It is left as it is" in console


def test_two_processes_are_one_with_twice_the_batch(flags, tmp_path):
    two = [*flags, "--output_dir", str(tmp_path / "two"), "--logging_dir", str(tmp_path / "logs_two")]
    two += ["--train_batch_size", "1"]
    console = tmp_path / "console.txt"
    assert train_in_two_processes(two, console, program="train_music_to_pose") == 0, console.read_text()
    assert run(flags) == 0
    losses = scalars(tmp_path / "logs_two", "train_loss")
    assert losses == pytest.approx(scalars(tmp_path / "logs", "train_loss"), rel=1e-5)
    one, both = final_weights(tmp_path / "out"), final_weights(tmp_path / "two")
    assert max((one[key] - both[key]).abs().max().item() for key in one) < 1e-5


def without_poses(data):
    shutil.rmtree(data / "poses")


def with_nan(data):
    np.save(data / "music_features/dance_002/frame_004.npy", np.full(35, np.nan, np.float32))


def without_a_rate(data):
    (data / "metadata" / "dance_002.json").unlink()


def with_another_recipe(data):
    facts = {"frame_rate": 8, "music_features": {"name": "demo35", "channels": 35}}
    (data / "metadata" / "dance_002.json").write_text(json.dumps(facts))


def too_short(data):
    for path in (data / "poses/dance_002", data / "music_features/dance_002"):
        for file in sorted(path.iterdir())[2:]:
            file.unlink()


@pytest.mark.parametrize(
    ("break_it", "flag", "message"),
    [
        (without_poses, (), "poses: "),
        (with_nan, (), "frame_004.npy: "),
        (without_a_rate, (), "no frame rate of sample 'dance_002'"),
        (with_another_recipe, (), "dance_002.json: its music_features are 'demo35', those of"),
        (too_short, (), "lasts 0.25 s, a take needs 1 s"),
        (None, ("--guidance_input_channels", 35, 18), "18"),
        (
            None,
            ("--group_dropout", "drums=0.5"),
            "--group_dropout drums: the music's groups are harmony, rhy",
        ),
        (None, ("--validation_data_dir", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_trained_on_is_told_in_a_line(break_it, flag, message, flags, data, capsys):
    if break_it:
        break_it(data)
    assert run(flags, "--train_data_dir", data, *flag) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if message in line]
    assert lines and "Traceback" not in "".join(lines)


def test_check_data_and_dry_run_train_nothing(flags, data, tmp_path, capsys):
    assert run(flags, "--train_data_dir", data, "--check_data") == 0
    assert "no faults" in capsys.readouterr().out
    assert run(flags, "--train_data_dir", data, "--dry_run") == 0
    text = capsys.readouterr().out
    for line in ("hidden_size: 16", "[2, 8, 134, 3]", "3 dances, 2 clips per step", "disk: "):
        assert line in text
    assert not list((tmp_path / "out").glob("checkpoint*")) and not (tmp_path / "out" / "final").exists()
