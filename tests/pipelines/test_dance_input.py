"""What dances are made of: rates and sizes found in files, data folders and videos; parts to keep."""

import json

import numpy as np
import pytest
import torch

from datasets import DataError, write_video
from pipelines.dance_input import (
    LIMBS,
    Kept,
    Music,
    Reference,
    dance,
    read_kept,
    read_music,
    read_reference,
)
from pipelines.loading import load_music_to_pose
from system.errors import ConfigError


def write_json(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def data(tmp_path, standing_pose):
    """A data folder of one sample, whose music and poses tell no rate and no size."""
    (tmp_path / "music_features").mkdir()
    np.save(tmp_path / "music_features" / "a.npy", np.zeros((20, 35)))
    for frame in range(3):
        write_json(
            tmp_path / "poses" / "a" / f"frame_{frame:03d}.json", {"keypoints": standing_pose.tolist()}
        )
    return tmp_path


def test_the_rate_of_music(data):
    def rate(fps=None):
        return read_music(data / "music_features" / "a.npy", 35, fps=fps, otherwise=8).rate

    assert rate() == 8
    write_video(data / "videos" / "a.mp4", np.zeros((4, 16, 32, 3), np.uint8), 12)
    assert rate() == pytest.approx(12)
    write_json(data / "metadata" / "a.json", {"frame_rate": 15})
    assert rate() == 15 and rate(fps=16) == 16
    write_json(data / "music_features" / "meta.json", {"fps": 20})
    assert rate() == 20


def test_music_of_another_recipe_is_one_line(data):
    path, settings = data / "music_features" / "a.npy", {"fps": None, "otherwise": 8, "recipe": "demo35"}
    write_json(data / "metadata" / "a.json", {"music_features": {"name": "demo35", "channels": 35}})
    read_music(path, 35, **settings)
    write_json(data / "metadata" / "a.json", {"music_features": {"name": "aist35", "channels": 35}})
    with pytest.raises(DataError, match="its features are aist35, the model was trained with demo35"):
        read_music(path, 35, **settings)


def test_the_frame_of_a_reference(data, capsys):
    path = data / "poses" / "a" / "frame_001.json"
    assert read_reference(path, 134).aspect == 1 and "taken as square" in capsys.readouterr().out
    write_video(data / "videos" / "a.mp4", np.zeros((4, 16, 32, 3), np.uint8), 12)
    assert read_reference(path, 134).aspect == 2
    write_json(data / "metadata" / "a.json", {"size": [40, 30]})
    assert read_reference(path, 134).size == (40, 30)
    write_json(data / "poses" / "a" / "meta.json", {"height": 10, "width": 30})
    assert read_reference(path, 134).aspect == 3 and not capsys.readouterr().out


def test_a_reference_is_any_pose_file(tmp_path, standing_pose, standing_file):
    wanted = pytest.approx(standing_pose, abs=1e-6)
    np.save(tmp_path / "one.npy", standing_pose)
    np.save(tmp_path / "track.npy", np.stack([standing_pose, np.zeros_like(standing_pose)]))
    pixels = {
        "keypoints": (standing_pose * [200, 100, 1]).tolist(),
        "width": 200,
        "height": 100,
        "frame_id": 7,
    }
    write_json(tmp_path / "dancer_2.json", pixels)
    body = (standing_pose[:18] * [200, 100, 1]).ravel().tolist()
    write_json(tmp_path / "openpose.json", {"people": [{"pose_keypoints_2d": body}], "canvas_width": 200,
                                            "canvas_height": 100})  # fmt: skip
    for name in ("one.npy", "track.npy", "dancer_2.json"):
        assert read_reference(tmp_path / name, 134).key_points == wanted, name
    assert read_reference(standing_file, 134).size == (64, 64)
    assert read_reference(tmp_path / "openpose.json", 18).key_points == pytest.approx(
        standing_pose[:18], abs=1e-6
    )


WRONG_REFERENCES = {
    "no file": ("none.json", None, "no such pose folder or file"),
    "points": ("a.json", lambda pose: {"keypoints": pose[:18].tolist()}, "18 key points.*trained with 134"),
    "no hip": ("a.json", lambda pose: {"keypoints": (pose * (np.arange(134) != 11)[:, None]).tolist()},
               "a.json: the reference pose lacks the neck or a hip"),
    "pixels": ("a.json", lambda pose: {"keypoints": (pose * [640, 480, 1]).tolist()},
               'of unknown size; write its "width" and "height" into a meta.json'),
    "a picture": ("a.png", lambda pose: {}, "a.png: is no pose file; give a JSON file, an npy file or"),
    "nobody": ("a.json", lambda pose: {"people": []}, "lacks the neck or a hip"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_REFERENCES)
def test_wrong_references_are_one_line(tmp_path, standing_pose, case):
    name, content, message = WRONG_REFERENCES[case]
    if content is not None:
        write_json(tmp_path / name, content(standing_pose))
    with pytest.raises(DataError, match=message):
        read_reference(tmp_path / name, 134)


WRONG_MUSIC = {
    "features": (np.zeros((20, 30)), "trained with 35 of music: extract it in the same way"),
    "NaN": (np.full((20, 35), np.nan), "row 0: NaN or infinite"),
    "0.25 s": (np.zeros((2, 35)), "2 rows at 8 per second last 0.25 s; give music of at least 1 s"),
    "maps": (np.zeros((20, 35, 4, 4)), "a dance follows rows of one dimension"),
}


@pytest.mark.parametrize("case", WRONG_MUSIC)
def test_wrong_music_is_one_line(tmp_path, case):
    rows, message = WRONG_MUSIC[case]
    np.save(tmp_path / "song.npy", rows)
    with pytest.raises(DataError, match=message):
        read_music(tmp_path / "song.npy", 35, fps=None, otherwise=8)


@pytest.fixture(scope="module")
def pipeline(tiny_dancer):
    pipeline = load_music_to_pose("--model_path", tiny_dancer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("rate, num_rows, wanted, num_poses", [
    (8, 12, None, 12), (20, 30, None, 30), (4, 5, None, 5), (10, 10, None, 10), (8, 12, 30, 45),
])  # fmt: skip
def test_a_pose_per_row_of_music_or_at_a_rate(pipeline, standing_pose, rate, num_rows, wanted, num_poses):
    music, reference = Music(np.zeros((num_rows, 35), np.float32), rate), Reference(standing_pose, (64, 64))
    dances = dance(pipeline, music, reference, rate=wanted, num_inference_steps=1, num_tracks=2)
    assert dances.shape == (2, num_poses, 134, 3)


def test_a_body_keeps_its_shape_in_a_frame_of_another(pipeline, standing_pose):
    """The same person in a frame twice as wide: x counts half, and the dance is the same in heights."""

    def heights(aspect):
        reference = Reference(standing_pose / [aspect, 1, 1], (50, round(50 * aspect)))
        music = Music(np.zeros((8, 35), np.float32), 8)
        generator = torch.Generator().manual_seed(1)
        return dance(pipeline, music, reference, num_inference_steps=1, generator=generator) * [aspect, 1, 1]

    np.testing.assert_allclose(heights(2), heights(1), atol=1e-5)


def test_what_is_kept(data, standing_pose):
    reference, seconds = Reference(standing_pose, (10, 20)), np.arange(16) / 8
    points, kept = read_kept(Kept(data / "poses" / "a", (0.0, 0.25), ("left_arm",)), 134, reference, seconds)
    assert points.shape == (16, 134, 3) and points[0, 1, 0] == pytest.approx(2 * standing_pose[1, 0])
    assert kept.any(1).tolist() == [True, True] + 14 * [False]
    assert set(np.flatnonzero(kept[0])) == set(LIMBS["left_arm"])
    _, kept = read_kept(Kept(data / "poses" / "a", None, ("head",)), 134, reference, seconds)
    assert kept.any(1).sum() == 3  # as far as the track reaches
    with pytest.raises(ConfigError, match="--keep_seconds 0 0.5: .* share 0.38 s"):
        read_kept(Kept(data / "poses" / "a", (0.0, 0.5)), 134, reference, seconds)
    with pytest.raises(ConfigError, match="--keep_seconds 0.01 0.02: no frame lies .* 0.125 s apart"):
        read_kept(Kept(data / "poses" / "a", (0.01, 0.02)), 134, reference, seconds)


def test_a_dance_can_begin_with_a_single_pose(standing_pose, standing_file):
    reference, seconds = Reference(standing_pose, (64, 64)), np.arange(16) / 8
    points, kept = read_kept(Kept(standing_file, (0.0, 0.03)), 134, reference, seconds)
    assert kept.all(1).tolist() == [True] + 15 * [False]
    np.testing.assert_allclose(points[0], standing_pose, atol=1e-6)


def test_limbs_name_each_point_but_the_neck_once():
    points = sorted(point for limb in LIMBS.values() for point in limb)
    assert points == [point for point in range(134) if point != 1]
