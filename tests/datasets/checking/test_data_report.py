"""Planted faults, one at a time and one a sample: whether each is found, named and alone."""

import json
import shutil
from collections.abc import Callable
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

import train_guidance
from datasets import GuidanceDataset, read_report, write_video

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
    path.write_text(json.dumps({"keypoints": [[0.06, 0.5, 1]] * 133 + [[1.4, 0.5, 1]]}))
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


def cut_off_at_a_packets_border(root):
    video = root / "videos" / "dance_001.mp4"
    with av.open(str(video)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    video.write_bytes(video.read_bytes()[: places[-2]])
    return video, "is cut off"


def damage_inside(root):
    path = root / "videos" / "dance_001.mp4"
    with av.open(str(path)) as container:
        place, size = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size][12]
    content = bytearray(path.read_bytes())
    content[place : place + size] = bytes(size)
    path.write_bytes(content)
    return path, "cannot be decoded"


def no_frame_for_three_seconds(root):
    path = root / "videos" / "dance_001.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=12)
        stream.width = stream.height = 64
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 12)
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 9 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number if number < 12 else number + 36, Fraction(1, 12)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path, "no frame between 0.92 s and 4.00 s (frames 11 and 12)"


def one_pose_too_many(root):
    path = root / "poses" / "dance_001" / "frame_024.json"
    path.write_text(json.dumps({"keypoints": [[0.5, 0.5, 1]] * 134}))
    return path.parent, "25 rows of pose for 24 frames"


def one_music_row_too_many(root):
    np.save(root / "music_features" / "dance_001" / "frame_024.npy", np.ones(5))
    return root / "music_features" / "dance_001", "25 rows of music for 24 frames"


def several_frames_missing(root):
    for number in (7, 8, 9):
        (root / "poses" / "dance_001" / f"frame_{number:03d}.json").unlink()
    return root / "poses" / "dance_001", "frame 7 is missing (after frame_006.json), and 2 more"


def first_frame_is_1(root):
    (root / "poses" / "dance_001" / "frame_000.json").unlink()
    return root / "poses" / "dance_001" / "frame_001.json", "frame 0 is missing"


def rate_too_high(root):
    (root / "music_features" / "dance_001" / "meta.json").write_text('{"fps": 30}')
    return root / "music_features" / "dance_001", "ends at 0.80 s (24 rows at 30 per second)"


def rate_too_low(root):
    (root / "music_features" / "dance_001" / "meta.json").write_text('{"fps": 4}')
    return root / "music_features" / "dance_001", "lasts 6.00 s (24 rows at 4 per second), the video 2.00 s"


def nonsense_rate(root):
    path = root / "music_features" / "dance_001" / "meta.json"
    path.write_text('{"fps": "fast"}')
    return path, "fps must be a positive number"


def set_points(root, points_of):
    for number in range(24):
        path = root / "poses" / "dance_001" / f"frame_{number:03d}.json"
        path.write_text(json.dumps({"keypoints": points_of(number)}))


def mostly_nobody(root):
    set_points(root, lambda number: [[0.5, 0.5, number % 4 == 0]] * 134)
    return root / "poses" / "dance_001", "no key point in 18 of 24 frames"


def mixed_units(root):
    set_points(root, lambda number: [[0.5, 0.5, 1] if number < 20 else [32, 32, 1]] * 134)
    path = root / "poses" / "dance_001" / "frame_020.json"
    return path, "coordinates about 32 look like pixels, the video's other frames are 0..1; 4 frames in all"


def units_stated_wrongly(root):
    path = root / "poses" / "dance_001" / "frame_000.json"
    for file in path.parent.iterdir():
        file.write_text(json.dumps(json.loads(file.read_text()) | {"coordinates": "pixel"}))
    return path, 'states "pixel", but coordinates about 0.5 look like 0..1, in 24 of 24 frames'


def contradicting_units(root):
    for number in (3, 4):
        path = root / "poses" / "dance_001" / f"frame_{number:03d}.json"
        content = json.loads(path.read_text()) | {"coordinates": ("pixel", "normalized")[number - 3]}
        path.write_text(json.dumps(content))
    return root / "poses" / "dance_001", "its files disagree about coordinates"


def pixels_of_a_larger_picture(root):
    set_points(root, lambda number: [[640 + number, 360, 1]] * 134)
    return root / "poses" / "dance_001" / "frame_000.json", "(10.00, 5.62) of the frame is outside"


def pose_as_an_image(root):
    shutil.rmtree(root / "poses" / "dance_001")
    (root / "poses" / "dance_001").mkdir()
    Image.new("RGB", (64, 64)).save(root / "poses" / "dance_001" / "frame_000.png")
    return root / "poses" / "dance_001", "pose must be json files, found png"


def empty_npy(root):
    shutil.rmtree(root / "music_features" / "dance_001")
    path = root / "music_features" / "dance_001.npy"
    path.touch()
    return path, "is not a whole .npy file"


def pickled_music_file(root):
    shutil.rmtree(root / "music_features" / "dance_001")
    path = root / "music_features" / "dance_001.npy"
    np.save(path, np.array([None] * 24))
    return path, "pickled"


def broken_metadata(root):
    (root / "metadata").mkdir(exist_ok=True)
    path = root / "metadata" / "dance_001.json"
    path.write_text('{"beat_seconds": "often"}')
    return path, "beat_seconds is not a list of numbers"


WARNINGS = (
    point_outside, tiny_reference, no_frame_for_three_seconds, rate_too_low, mostly_nobody, broken_metadata,
)  # fmt: skip
FAULTS = [
    missing_video_data, not_a_video, folder_for_a_video, short_video, missing_last_pose, missing_music,
    doubled_frame, doubled_frame_id, no_music_at_all, empty_pose_folder, wrong_number_of_points,
    wrong_number_of_features, nan_feature, infinite_feature, pickled_feature, text_feature, constant_music,
    silent_music, nobody_detected, broken_json, no_reference, two_references, unreadable_reference,
    cut_off_at_a_packets_border, damage_inside, one_pose_too_many, one_music_row_too_many,
    several_frames_missing, first_frame_is_1, rate_too_high, nonsense_rate, mixed_units, units_stated_wrongly,
    contradicting_units, pixels_of_a_larger_picture, pose_as_an_image, empty_npy, pickled_music_file,
    *WARNINGS,
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


def test_several_faults_of_a_sample_are_all_found(data_root, check, tmp_path):
    for plant in (nan_feature, no_reference, broken_json, not_a_video):
        plant(data_root)
    report = check(data_root)
    assert sorted(fault.problem.split()[0] for fault in report.faults) == ["NaN", "is", "is", "no"]
    assert {fault.sample_id for fault in report.faults} == {"dance_001"}
    report.write(tmp_path / "data_report.json")
    assert json.loads((tmp_path / "data_report.json").read_text())["num_errors"] == 4


def test_image_format_needs_one_frame(data_root, check):
    short_video(data_root)
    assert check(data_root, data_format="image").ok


@pytest.fixture
def faulty_root(shared_root, tmp_path) -> Callable:
    """A folder of a sample for each planted fault, called as the fault, and two good ones.

    With it {sample id: (path, words of the problem)}.
    """
    root = shutil.copytree(shared_root, tmp_path / "faulty", ignore=shutil.ignore_patterns("dance_003*"))
    planted = {}
    for plant in FAULTS:
        alone = tmp_path / plant.__name__
        shutil.copytree(shared_root, alone, ignore=shutil.ignore_patterns("dance_002*", "dance_003*"))
        path, problem = plant(alone)
        place = str(path.relative_to(alone)).replace("dance_001", plant.__name__)
        planted[plant.__name__] = (root / place, problem)
        for source in alone.glob("*/dance_001*"):
            target = root / source.parent.name / source.name.replace("dance_001", plant.__name__)
            target.parent.mkdir(exist_ok=True)
            source.rename(target)
    return root, planted


def test_every_fault_of_a_folder_is_named_and_no_good_sample(faulty_root, tmp_path, capsys):
    root, planted = faulty_root
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    assert len(planted) >= 40
    flags = "--guidance_input_channels 5 134 --resolution 64 --sequence_length 4 --num_workers 2 --check_data"
    folders = ["--train_data_dir", str(root), "--output_dir", str(tmp_path / "out")]
    assert train_guidance.main([*flags.split(), *folders]) == 2

    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    for path, problem in planted.values():
        (line,) = [line for line in captured.out.splitlines() if f": {path}: " in line and problem in line]
        assert line.split("; ")[-1].strip()  # what to do
    report = read_report(tmp_path / "out" / "data_report.json")
    assert sorted(fault.sample_id for fault in report.faults) == sorted(planted)
    assert set(report.samples) == {"dance_001", "dance_002", *planted}
    page = (tmp_path / "out" / "data_report.html").read_text(encoding="utf-8")
    assert [name for name in report.samples if f"<h3>{name}</h3>" not in page] == []
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before
