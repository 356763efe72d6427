"""Validation of dances: the same numbers at every validation, by noise level, and what is drawn."""

import numpy as np
import pytest
import torch

from datasets import DanceDataset
from training.music_to_pose.data import DanceData
from training.music_to_pose.settings import MusicToPoseArguments
from training.music_to_pose.task import make_task
from training.music_to_pose.validator import DanceValidator, draw_dances


@pytest.fixture(scope="module")
def task(tiny_data):
    settings = MusicToPoseArguments(
        hidden_size=16, num_layers=1, num_heads=2, sequence_length=8, num_validation_clips=3,
        num_inference_steps=2,
    )  # fmt: skip
    dances = DanceDataset(tiny_data, 35, 134, sequence_length=8)
    indices = [0, 1, 2]
    data = DanceData(
        dances, dances, indices, indices, "", dances, "dance", frame_rate=8.0, music_recipe="aist35"
    )
    task = make_task(settings, data)
    task.start_afresh()
    task.validator = DanceValidator(data, task.objective, settings, torch.device("cpu"))
    return task


def test_a_validation_repeats_its_numbers(task):
    first, panel = task.validator.measure(task.model)
    second, same_panel = task.validator.measure(task.model)
    assert first == second and (panel == same_panel).all()
    thirds = [first[f"val_loss/{name}"] for name in ("low", "middle", "high")]
    assert first["val_loss"] == pytest.approx(sum(thirds) / 3)
    assert panel.shape[0] == 12 and panel.shape[2] > 3 * 256


def test_each_level_is_a_third_of_the_noise_and_hears_all_music(task):
    draws = [task.validator.draw(task.model, level) for level in range(3)]
    timesteps = torch.stack([draw.timesteps for draw in draws])
    assert (timesteps * 3 // 1000 == torch.arange(3)[:, None]).all()
    assert all(mask.all() for draw in draws for mask in draw.music_mask.values())
    assert not draws[0].noise.equal(draws[1].noise)


def test_the_gap_shows_whether_the_music_is_heard(task):
    assert task.validator.losses(task.model)["guidance_gap/music"] == 0  # new weights say nothing yet
    with torch.no_grad():
        task.model.pose_out.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert task.validator.losses(task.model)["guidance_gap/music"] != 0


def test_the_truth_moves_as_the_truth(task):
    truth = [song["key_points"].numpy() for song in task.validator.songs]
    found = task.validator.motion_scalars(task.model, truth)
    assert [found[f"motion/{name}"] for name in ("jerk", "speed", "bone_spread")] == pytest.approx([1, 1, 1])
    assert found["motion/diversity"] == found["motion/diversity_truth"]


def test_dances_are_drawn_in_one_square(task):
    dance = np.zeros((2, 134, 3), np.float32)
    dance[:, 1] = (0.2, 0.3, 1)
    dance[1, 1, 0] = 0.8
    panel = draw_dances([dance, dance, dance])
    column = panel[:, -256:, :256]
    lit = [np.argwhere(frame.any(-1)).mean(0) for frame in column]
    assert lit[1][1] - lit[0][1] == pytest.approx(256 / 1.1, abs=3) and lit[0][0] == pytest.approx(128, abs=3)
