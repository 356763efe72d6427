"""Dances of a tiny model through its pipeline: saved and loaded, several for one song, with parts kept."""

import json

import numpy as np
import pytest
import torch

from models import ModelError
from pipelines.loading import load_music_to_pose
from pipelines.music_to_pose_pipeline import MusicToPosePipeline
from system.errors import UserError

NUM_FRAMES = 12
RIGHT_ARM = [2, 3, 4]


@pytest.fixture(scope="module")
def pipeline(tiny_dancer):
    pipeline = load_music_to_pose("--model_path", tiny_dancer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def music():
    return np.random.default_rng(0).normal(size=(NUM_FRAMES, 35)).astype(np.float32)


def sample(pipeline, music, pose, *, seed=1, **settings) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return pipeline(music, pose, num_inference_steps=2, generator=generator, **settings).key_points


def test_a_saved_pipeline_dances_alike(pipeline, music, standing_pose, tmp_path):
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["model"] == ["models", "MusicToPoseModel"] and index["music_recipe"] == "aist35"
    loaded = MusicToPosePipeline.from_pretrained(tmp_path)
    dances = [sample(one, music, standing_pose) for one in (pipeline, loaded)]
    np.testing.assert_array_equal(*dances)
    assert dances[0].shape == (1, NUM_FRAMES, 134, 3) and np.isfinite(dances[0]).all()


def test_dances_differ_and_the_first_is_the_same_whatever_their_number(pipeline, music, standing_pose):
    three = sample(pipeline, music, standing_pose, num_tracks=3)
    np.testing.assert_allclose(three[:1], sample(pipeline, music, standing_pose), atol=1e-5)
    assert np.abs(three[0] - three[1]).max() > 1e-3
    (as_tuple,) = pipeline(music, standing_pose, num_inference_steps=1, return_dict=False)
    assert as_tuple.shape == (1, NUM_FRAMES, 134, 3)


def test_what_is_absent_in_the_reference_is_absent(pipeline, music, standing_pose):
    pose = standing_pose.copy()
    pose[92:] = 0
    dance = sample(pipeline, music, pose)
    assert not dance[:, :, 92:].any() and (dance[:, :, :24, 2] == 1).all()


@pytest.fixture
def track(standing_pose):
    """A person who walks to the right with waving arms."""
    steps = np.arange(NUM_FRAMES)[:, None]
    track = np.repeat(standing_pose[None], NUM_FRAMES, 0).astype(np.float32)
    track[..., 0] += 0.01 * steps
    track[:, RIGHT_ARM[1:], 1] -= 0.1 * np.sin(steps)
    return track


def test_a_span_of_a_track_is_kept_exactly(pipeline, music, standing_pose, track):
    mask = np.zeros((NUM_FRAMES, 134), bool)
    mask[3:7] = True
    track[4, 0] = 0  # absent there, too
    dance = sample(pipeline, music, standing_pose, keep_poses=track, keep_mask=mask)[0]
    np.testing.assert_array_equal(dance[3:7], track[3:7])
    assert np.abs(dance[8:] - track[8:]).max() > 0.01


def test_a_limb_of_a_track_is_kept_in_its_angles(pipeline, music, standing_pose, track):
    mask = np.zeros((NUM_FRAMES, 134), bool)
    mask[:, RIGHT_ARM] = True
    dance = sample(pipeline, music, standing_pose, keep_poses=track, keep_mask=mask)[0]

    def angles(poses):
        bones = poses[:, RIGHT_ARM, :2] - poses[:, [1, 2, 3], :2]
        return np.arctan2(bones[..., 1], bones[..., 0])

    np.testing.assert_allclose(angles(dance), angles(track), atol=1e-4)
    others = np.abs(dance - sample(pipeline, music, standing_pose)[0])[:, 5:8]
    assert others.max() > 1e-4  # the rest fits in


WRONG = {
    "features": (
        lambda call: call.update(music=call["music"][:, :3]),
        r"music \[12, 3\]: expected \[N, 35\]",
    ),
    "NaN": (lambda call: call["music"].__setitem__((2, 1), np.nan), "music: NaN"),
    "a short song": (lambda call: call.update(music=call["music"][:3]), "music of 0.38 s: at least 1 s"),
    "points": (lambda call: call.update(pose=call["pose"][:18]), r"reference_pose \[18, 3\]: expected \[134"),
    "no hip": (lambda call: call["pose"].__setitem__(8, 0), "lacks the neck or a hip"),
    "half a part": (lambda call: call.update(keep_poses=np.zeros((12, 134, 3))), "go together"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_named(pipeline, music, standing_pose, case):
    change, message = WRONG[case]
    call = {"music": music.copy(), "pose": standing_pose.copy()}
    change(call)
    with pytest.raises(UserError, match=message):
        sample(pipeline, **call)


def test_a_folder_of_another_model_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "ChampPipeline"}')
    with pytest.raises(ModelError, match="another kind of model: expected .* train_music_to_pose.py"):
        load_music_to_pose("--model_path", tmp_path)
