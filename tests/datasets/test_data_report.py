"""The data report: one planted fault at a time, and whether it is found, named and alone."""

import json
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from datasets import GuidanceDataset, check_data, write_video


@pytest.fixture
def check(settings):
    return lambda root, **changes: check_data(root, **{**settings, **changes})


# Each plants a fault in sample dance_001 and returns (path in the data folder, words of the problem).


def missing_video_data(root):
    video = root / "videos" / "dance_001.mp4"
    video.write_bytes(video.read_bytes()[:-200])
    return video, "cut off"


def not_a_video(root):
    video = root / "videos" / "dance_001.mp4"
    video.write_bytes(b"nothing")
    return video, "not a readable video"


def folder_for_a_video(root):
    video = root / "videos" / "dance_001.mp4"
    video.unlink()
    video.mkdir()
    return video, "is a folder"


def short_video(root):
    path = root / "videos" / "dance_001.mp4"
    write_video(path, np.zeros((3, 64, 64, 3), np.uint8), 12)
    for file in [
        *(root / "poses" / "dance_001").iterdir(),
        *(root / "music_features" / "dance_001").iterdir(),
    ]:
        if int(file.stem[-3:]) >= 3:
            file.unlink()
    return path, "3 frames, a clip needs 4"


def missing_last_pose(root):
    (root / "poses" / "dance_001" / "frame_023.json").unlink()
    return root / "poses" / "dance_001", "23 rows of pose for 24 frames"


def missing_music(root):
    (root / "music_features" / "dance_001" / "frame_010.npy").unlink()
    return root / "music_features" / "dance_001", "frame 10 is missing"


def doubled_frame(root):
    folder = root / "poses" / "dance_001"
    shutil.copy(folder / "frame_004.json", folder / "frame_04.json")
    return folder / "frame_04.json", "frame 4 twice"


def doubled_frame_id(root):
    path = root / "poses" / "dance_001" / "frame_005.json"
    path.write_text(path.read_text().replace('"frame_id": 5', '"frame_id": 4'))
    return path, "frame_id is 4 in the file of frame 5"


def no_music_at_all(root):
    shutil.rmtree(root / "music_features" / "dance_001")
    return root / "music_features" / "dance_001", "no music"


def empty_pose_folder(root):
    for path in (root / "poses" / "dance_001").iterdir():
        path.unlink()
    return root / "poses" / "dance_001", "no pose files in it"


def wrong_number_of_points(root):
    path = root / "poses" / "dance_001" / "frame_002.json"
    path.write_text(json.dumps({"keypoints": [[0.5, 0.5, 1]] * 18}))
    return path, "18 key points, expected 134"


def wrong_number_of_features(root):
    path = root / "music_features" / "dance_001" / "frame_002.npy"
    np.save(path, np.ones(6))
    return path, "shape (6,), expected (5,)"


def nan_feature(root):
    path = root / "music_features" / "dance_001" / "frame_002.npy"
    np.save(path, np.array([1, 2, np.nan, 4, 5]))
    return path, "NaN"


def infinite_feature(root):
    path = root / "music_features" / "dance_001" / "frame_002.npy"
    np.save(path, np.array([1, 2, np.inf, 4, 5]))
    return path, "infinite"


def pickled_feature(root):
    path = root / "music_features" / "dance_001" / "frame_002.npy"
    np.save(path, np.array([None] * 5))
    return path, "pickled"


def text_feature(root):
    path = root / "music_features" / "dance_001" / "frame_002.npy"
    np.save(path, np.array(["a"] * 5))
    return path, "numbers expected"


def constant_music(root):
    for path in (root / "music_features" / "dance_001").iterdir():
        np.save(path, np.arange(5.0))
    return root / "music_features" / "dance_001", "the same values in every frame"


def silent_music(root):
    for path in (root / "music_features" / "dance_001").iterdir():
        np.save(path, np.zeros(5))
    return root / "music_features" / "dance_001", "the same zero values in every frame"


def nobody_detected(root):
    for path in (root / "poses" / "dance_001").iterdir():
        path.write_text(json.dumps({"keypoints": [[0, 0, 0]] * 134}))
    return root / "poses" / "dance_001", "no key point in any frame"


def point_outside(root):
    path = root / "poses" / "dance_001" / "frame_006.json"
    path.write_text(json.dumps({"keypoints": [[0.5, 0.5, 1]] * 133 + [[1.4, 0.5, 1]]}))
    return path, "key point 133 at (1.40, 0.50) of the frame is outside"


def broken_json(root):
    path = root / "poses" / "dance_001" / "frame_006.json"
    path.write_text('{"keypoints": [')
    return path, "not valid JSON"


def no_reference(root):
    (root / "reference_images" / "dance_001.png").unlink()
    return root / "reference_images" / "dance_001.jpg", "no reference image"


def two_references(root):
    Image.new("RGB", (64, 64)).save(root / "reference_images" / "dance_001.webp")
    return root / "reference_images" / "dance_001.webp", "a second reference image"


def tiny_reference(root):
    path = root / "reference_images" / "dance_001.png"
    Image.new("RGB", (20, 64)).save(path)
    return path, "20x64 pixels, tiny"


def unreadable_reference(root):
    path = root / "reference_images" / "dance_001.png"
    path.write_bytes(path.read_bytes()[:70])
    return path, "not a readable image"


WARNINGS = (point_outside, tiny_reference)
FAULTS = [
    missing_video_data, not_a_video, folder_for_a_video, short_video, missing_last_pose, missing_music,
    doubled_frame, doubled_frame_id, no_music_at_all, empty_pose_folder, wrong_number_of_points,
    wrong_number_of_features, nan_feature, infinite_feature, pickled_feature, text_feature, constant_music,
    silent_music, nobody_detected, broken_json, no_reference, two_references, unreadable_reference, *WARNINGS,
]  # fmt: skip


@pytest.mark.parametrize("plant", FAULTS)
def test_planted_fault_is_named(data_root, check, plant):
    path, problem = plant(data_root)
    report = check(data_root)
    (fault,) = report.faults
    assert (fault.sample_id, fault.path) == ("dance_001", str(path))
    assert problem in fault.problem and fault.fix and "\n" not in str(fault)
    assert fault.severity == ("warning" if plant in WARNINGS else "error")
    assert not report.ok and f"{fault.path}: {fault.problem}; {fault.fix}" in report.summary()


@pytest.mark.parametrize("plant", [fault for fault in FAULTS if fault not in WARNINGS])
def test_skip_invalid_leaves_out_what_the_report_calls_an_error(data_root, settings, plant):
    plant(data_root)
    dataset = GuidanceDataset(data_root, **settings, skip_invalid=True)
    assert dataset.sample_ids == ["dance_002"] and [name for name, _ in dataset.left_out] == ["dance_001"]


def test_clean_folder(shared_root, check, tmp_path):
    report = check(shared_root)
    assert report.ok and report.faults == []
    assert report.summary().endswith("3 samples checked, no faults")
    assert "pose: coordinates taken as normalized in 3 of 3 samples" in report.notes
    report.write(tmp_path / "new" / "data_report.json")
    content = json.loads((tmp_path / "new" / "data_report.json").read_text())
    assert content["ok"] and content["num_samples"] == 3
    assert content["samples"]["dance_002"]["frames"] == 24
    assert content["samples"]["dance_002"]["pose"]["coordinates"] == "normalized"
    assert content["samples"]["dance_002"]["music"]["shape"] == [5]


def test_several_faults_of_a_sample_are_all_found(data_root, check, tmp_path):
    for plant in (nan_feature, no_reference, broken_json, not_a_video):
        plant(data_root)
    report = check(data_root)
    assert sorted(fault.problem.split()[0] for fault in report.faults) == ["NaN", "is", "is", "no"]
    assert {fault.sample_id for fault in report.faults} == {"dance_001"}
    report.write(tmp_path / "data_report.json")
    assert json.loads((tmp_path / "data_report.json").read_text())["num_errors"] == 4


def test_many_faulty_files_are_counted(data_root, check):
    report = check(data_root, guidance_input_channels=[6, 134])
    problems = [fault.problem for fault in report.faults if fault.sample_id == "dance_001"]
    assert len(problems) == 2 and problems[-1] == "23 more of its 24 rows are faulty"


def test_some_faulty_files_are_named_and_the_rest_counted(data_root, check):
    for path in sorted((data_root / "poses" / "dance_001").iterdir())[:10]:
        path.write_text("{}")
    problems = [fault.problem for fault in check(data_root).faults if fault.sample_id == "dance_001"]
    assert len(problems) == 4 and problems[-1] == "7 more of its 24 rows are faulty"


def test_type_without_a_folder_is_one_fault(data_root, check):
    report = check(data_root, guidance_types=["music", "depth"], guidance_input_channels=[5, 1])
    (fault,) = report.faults
    assert fault.path == str(data_root / "depth") and "no such folder" in fault.problem
    shutil.rmtree(data_root / "reference_images")
    assert [fault.path for fault in check(data_root).faults] == [str(data_root / "reference_images")]


@pytest.mark.parametrize("missing", ["", "videos"])
def test_no_data_at_all(data_root, check, missing):
    shutil.rmtree(data_root / missing)
    (fault,) = check(data_root).faults
    assert fault.path == str(data_root / missing) and fault.problem.startswith("no such")


def test_same_video_in_training_and_validation(data_root, check, tmp_path):
    write_video(data_root / "videos" / "dance_001.mp4", np.full((24, 64, 64, 3), 9, np.uint8), 12)
    validation = tmp_path / "validation"
    shutil.copytree(data_root / "videos", validation / "videos")
    (validation / "videos" / "dance_002.mp4").rename(validation / "videos" / "other.mp4")
    write_video(validation / "videos" / "dance_001.mp4", np.zeros((9, 64, 64, 3), np.uint8), 12)
    (fault,) = check(data_root, validation_data_dir=validation).faults
    assert fault.path == str(data_root / "videos" / "dance_002.mp4") and "other.mp4" in fault.problem


def test_music_shapes_must_agree_between_samples(data_root, check):
    shutil.rmtree(data_root / "music_features" / "dance_002")
    np.save(
        data_root / "music_features" / "dance_002.npy", np.random.default_rng(0).normal(size=(24, 5, 2, 2))
    )
    (fault,) = check(data_root).faults
    assert fault.sample_id in ("dance_001", "dance_002") and "has shape" in fault.problem


def test_stray_entries_are_noted(data_root, check):
    (data_root / "poses" / "dance_009").mkdir()
    report = check(data_root)
    assert report.ok and f"{data_root / 'poses' / 'dance_009'} belongs to no video" in report.notes


def test_damage_inside_a_video_needs_decoding(data_root, check, write_numbered):
    path = write_numbered(data_root / "videos" / "dance_001.mp4", 24, options={"g": "4", "bf": "0"})
    with av.open(str(path)) as container:
        place, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][12]
    content = bytearray(path.read_bytes())
    content[place : place + size] = bytes(size)
    path.write_bytes(content)
    (fault,) = check(data_root).faults
    assert fault.path == str(path) and "frame 12 (at 1.000 s of 1.917 s) cannot be decoded" in fault.problem
    assert check(data_root, decode_videos=False).ok


def test_pixel_units_are_noted(data_root, check):
    for path in (data_root / "poses" / "dance_001").iterdir():
        path.write_text(json.dumps({"keypoints": [[30, 40, 1]] * 134}))
    report = check(data_root)
    assert report.ok and report.samples["dance_001"]["pose"]["coordinates"] == "pixel"
    assert "pose: coordinates taken as pixel in 1 of 2 samples" in report.notes


def test_image_format_needs_one_frame(data_root, check):
    short_video(data_root)
    assert check(data_root, data_format="image").ok


def test_real_sample_is_clean(real_data_root):
    report = check_data(real_data_root, ["music", "pose"], [35, 134])
    assert report.ok, report.summary()
