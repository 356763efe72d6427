"""Figures of dances to music, of a model that has learned nothing: the truth's own, the floors, the gaps."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import music_to_pose
from benchmarks.dances.drawn import DemoClip
from demo.dancer import ARM_MOVES
from models import MusicToPoseModel
from models.music_to_pose.sampling import make_sampler
from pipelines.music_to_pose_pipeline import MusicToPosePipeline

RATE = 10.0
GROUPS = {"rhythm": [0], "timbre": [1]}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(part, model, *flags): the JSON of the benchmark for a model, which samples in 2 steps."""

    def run(part, model, *flags):
        torch.manual_seed(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        MusicToPosePipeline(model, make_sampler()).save_pretrained(tmp_path / "final")
        words = [part, "--model_path", tmp_path / "final", "--num_inference_steps", 2, *flags]
        words += ["--json", tmp_path / "figures.json"]
        monkeypatch.setattr(sys, "argv", ["music_to_pose.py", *map(str, words)])
        music_to_pose.main()
        return json.loads((tmp_path / "figures.json").read_text())[str(tmp_path / "final")]

    return run


def small_model(num_key_points, num_features, groups, frame_rate):
    return MusicToPoseModel(num_key_points, num_features, groups, 0, frame_rate, 12, 16, 1, 2)


def test_the_truth_dances_its_chords_once_it_has_settled():
    clips = [DemoClip(number, 40) for number in range(2)]
    for clip in clips:
        is_right = clip.danced_moves(clip.truth) == clip.moves
        assert is_right[clip.is_settled].all() and 0.7 < is_right.mean() < 1
        figures = clip.figures(clip.truth)
        assert figures["wrists"] == 0 and figures["bounce"] == pytest.approx(1)
        assert figures["arm_spread"] < 0.002
    wrong = clips[0].danced_moves(clips[1].truth) == clips[0].moves
    assert wrong[clips[0].is_settled].mean() < 0.6
    assert len(ARM_MOVES) == 6


def test_demo(run):
    flags = ("--num_clips", 2, "--num_frames", 16, "--long_seconds", 2.5, "--num_long", 1)
    found = run("demo", small_model(134, 35, None, 12.0), *flags)
    assert found["truth"]["move_settled"] == 1 and found["truth"]["jerk"] == 1
    assert found["mean pose"]["speed"] == pytest.approx(0, abs=1e-6) and found["mean pose"]["bounce"] == 0
    assert found["generated"]["seeds_apart"] > 0 and found["generated"]["wrists"] > 0
    assert found["long"]["2.5 s"]["taken_per_second"] > 0 and found["long"]["2.5 s"]["seams"] > 0


def write_take(folder, name, seed):
    random, seconds = np.random.default_rng(seed), np.arange(120) / RATE
    phases = random.uniform(0, 6, (18, 2))
    points = np.ones((120, 18, 3), np.float32)
    points[..., :2] = DemoClip(seed, 2).reference[:18, :2] + 0.03 * np.sin(
        5 * seconds[:, None, None] + phases
    )
    features = random.standard_normal((120, 2)).astype(np.float32)
    features[:, 0] = np.arange(120) % 6 == 0
    for part in ("poses", "music_features", "metadata"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    np.save(folder / "poses" / f"{name}.npy", points)
    np.save(folder / "music_features" / f"{name}.npy", features)
    facts = {"frame_rate": RATE, "beat_seconds": seconds[::6].tolist()}
    (folder / "metadata" / f"{name}.json").write_text(json.dumps(facts))


def test_real(run, tmp_path):
    for seed, name in enumerate(("train/waltz_1", "train/tango_1", "held/waltz_2", "held/waltz_3")):
        folder, take = name.split("/")
        write_take(tmp_path / folder, take, seed)
    found = run(
        "real", small_model(18, 2, GROUPS, RATE), "--train_data_dir", tmp_path / "train",
        "--validation_data_dir", tmp_path / "held", "--kind", "([a-z]*)_", "--num_windows", 4,
        "--num_training_takes", 1,
    )  # fmt: skip
    floors = found["floors of fid_k"]
    assert floors.keys() == {"truth's halves", "training: waltz", "training: tango", "noise", "mean pose"}
    assert floors["noise"] > floors["truth's halves"] and floors["mean pose"] > floors["training: waltz"]
    held = found["held out"]
    assert held["figures"]["speed"] > 0 and held["figures"]["overlong_truth"] < 0.1
    assert held["figures"]["nearest_truth"] > 0 and np.isfinite(held["figures"]["beat_gain"])
    assert held["beats"].keys() == {"waltz_2", "waltz_3"}
    gaps = held["music"]["gaps"]
    assert gaps.keys() == {"shuffled", "shifted", "without music", "without rhythm", "without timbre"}
    assert all(low <= gap <= high for gap, low, high in gaps.values()) and gaps["shuffled"][0] != 0
    assert found["training"]["figures"]["nearest_truth"] == 0  # its windows are in the training data
