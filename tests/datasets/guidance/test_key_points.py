"""Poses of a video in one .npy file: the same as in JSON files, wherever those are read."""

import json
import shutil

import numpy as np
import pytest
import torch

from datasets import DataError, read_pose_folder
from datasets.checking.sample_check import CheckSettings
from datasets.data_folder import list_data_folder
from datasets.guidance.tracks import open_track
from datasets.guidance_dataset import GuidanceDataset
from datasets.report.images import draw_sample


def as_one_file(root, sample_id="dance_001", scale=1.0):
    """Put a sample's poses into one file, of coordinates times `scale`; return its path."""
    folder = root / "poses" / sample_id
    points = read_pose_folder(folder, 134)
    points[..., :2] *= scale
    shutil.rmtree(folder)
    np.save(folder.with_suffix(".npy"), points)
    return folder.with_suffix(".npy")


@pytest.fixture
def make(settings):
    return lambda root, **changes: GuidanceDataset(root, **settings | changes)


def changed(path, change):
    points = np.load(path)
    points = change(points)
    np.save(path, points)


# ---- read ----


def test_clips_are_the_same_to_the_bit(shared_root, data_root, make):
    path = as_one_file(data_root)
    flags = {"random_flip": True, "center_crop": True}
    for changes in ({}, flags, {"data_format": "image"}):
        expected, found = make(shared_root, **changes), make(data_root, **changes)
        for epoch in range(3):
            expected.set_epoch(epoch), found.set_epoch(epoch)
            for index in range(2):
                one, other = expected[index], found[index]
                assert torch.equal(one["guidance"]["pose"], other["guidance"]["pose"])
                assert torch.equal(one["frames"], other["frames"])
    assert make(data_root).source_files(0)["guidance/pose"] == ([path], "")


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_units_are_decided_by_the_whole_video(data_root, make, dtype):
    """Frame 0 lies in the corner; the others say that these are pixels of the 64x64 video."""
    path = as_one_file(data_root, scale=64)
    changed(path, lambda points: points.astype(dtype))
    assert np.load(path)[0, 0, 0] == 0
    dataset = make(data_root, sequence_length=2)
    pose = dataset.read_clip(0, 0)["guidance"]["pose"]
    np.testing.assert_allclose(pose[:, 0, :2], [[0, 0.5], [0.01, 0.5]], atol=1e-3)


def test_a_meta_file_states_units_rate_and_frame(data_root, make, check):
    path = as_one_file(data_root)
    meta = path.with_name("meta.json")
    meta.write_text('{"coordinates": "pixel"}')
    dataset = make(data_root)
    np.testing.assert_allclose(dataset.read_clip(0, 10)["guidance"]["pose"][0, 0, 0], 0.1 / 64, rtol=1e-6)
    assert dataset.source_files(0)["guidance/pose"] == ([path], " in pixel units")
    assert check(data_root).samples["dance_001"]["pose"]["coordinates"] == "pixel"
    meta.write_text('{"coordinates": "pixel", "width": 640, "height": 320}')
    track = open_track("pose", path)
    assert track.kind.stated_size(track, ()) == (320, 640)
    meta.write_text('{"coordinates": "metres"}')
    with pytest.raises(DataError, match=r"meta\.json: coordinates is 'metres'"):
        make(data_root)[0]
    of_one_video = data_root / "poses" / "dance_002" / "meta.json"
    meta.unlink()
    of_one_video.write_text('{"coordinates": "metres"}')
    with pytest.raises(DataError, match=r"dance_002.meta\.json: coordinates is 'metres'"):
        make(data_root)[1]
    of_one_video.unlink()
    meta.write_text('{"fps": 6}')
    changed(path, lambda points: points[::2])
    (data_root / "poses" / "dance_002").rename(data_root / "aside")
    assert check(data_root).samples["dance_001"]["pose"]["fps"] == 6
    for frame, place in ((8, 0.08), (10, 0.1)):
        np.testing.assert_allclose(read_at(make, data_root, frame), place, rtol=1e-6)


def read_at(make, root, frame):
    dataset = make(root, guidance_types=["pose"], guidance_input_channels=[134], skip_invalid=True)
    return dataset.read_clip(0, frame)["guidance"]["pose"][0, 0, 0]


def test_pixels_need_the_size_of_their_frame(data_root):
    path = as_one_file(data_root, scale=64)
    with pytest.raises(DataError, match="in pixels, of a frame of unknown size; give the size"):
        read_pose_folder(path, 134)
    points = read_pose_folder(path, 134, frame_size=(64, 64))
    np.testing.assert_allclose(points[:, 0, 0], np.arange(24) / 100, rtol=1e-6)


def test_one_file_and_a_folder(data_root, check, make):
    path = as_one_file(data_root)
    folder = path.with_suffix("")
    folder.mkdir()
    (folder / "frame_000.json").write_text(json.dumps({"keypoints": [[0.5, 0.5, 1]] * 134}))
    (fault,) = check(data_root).faults
    assert (fault.path, fault.fix) == (str(path), "keep one")
    assert fault.problem == "there is also a folder of pose files, dance_001"
    with pytest.raises(DataError, match="keep one"):
        make(data_root)[0]


# ---- check ----


def with_value(place, value):
    def change(points):
        points[place] = value
        return points

    return change


FAULTS = [
    (lambda points: points[:-1], "23 rows of pose for 24 frames", "error"),
    (lambda points: points[:, :18], "18 key points, expected 134", "error"),
    (lambda points: points[..., :2], "shape (24, 134, 2), expected (N, 134, 3)", "error"),
    (lambda points: points.astype(str), "numbers expected", "error"),
    (lambda points: points[:0], "no rows", "error"),
    (with_value((7, 3, 0), np.nan), "row 7: a NaN, infinite or (confidence) negative value", "error"),
    (with_value((7, 3, 2), -1), "row 7: a NaN, infinite or (confidence) negative value", "error"),
    (with_value((..., 2), 0), "no key point in any frame", "error"),
    (with_value((slice(18), slice(None), 2), 0), "no key point in 18 of 24 frames", "warning"),
    (with_value((6, 133, 0), 1.4), "row 6: key point 133 at (1.40, 0.50) of the frame is outside", "warning"),
    (with_value((slice(20, None), ..., slice(2)), 32), "row 20: coordinates about 32 look like pix", "error"),
]


@pytest.mark.parametrize(("change", "problem", "severity"), FAULTS)
def test_faults_are_named(data_root, check, settings, change, problem, severity):
    path = as_one_file(data_root)
    changed(path, change)
    (fault,) = check(data_root).faults
    assert (fault.sample_id, fault.path, fault.severity) == ("dance_001", str(path), severity)
    assert problem in fault.problem and fault.fix
    if severity == "error":
        assert GuidanceDataset(data_root, **settings, skip_invalid=True).sample_ids == ["dance_002"]


def test_facts_and_report_are_those_of_json(shared_root, data_root, check):
    as_one_file(data_root)
    reports = [check(root) for root in (shared_root, data_root)]
    assert reports[1].ok and reports[0].samples["dance_001"] == reports[1].samples["dance_001"]
    drawn = []
    for root in (shared_root, data_root):
        folder = list_data_folder(root, ["pose"])
        drawn.append(draw_sample(folder, CheckSettings({"pose": 134}, 1, (64, 64)), folder.samples[0]))
    assert drawn[0].frames == drawn[1].frames
