"""The data report as a whole: what it counts, notes and keeps, and when it need not be made again."""

import json
import os
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from datasets import check_data, read_report, write_video
from system.processes import map_in_processes


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


@pytest.mark.parametrize(
    "found, missing",
    [("pose", "poses"), ("Poses", "poses"), ("music", "music_features"), ("video", "videos"),
     ("reference_image", "reference_images")],
)  # fmt: skip
def test_a_folder_that_is_nearly_rightly_named(data_root, check, found, missing):
    (data_root / missing).rename(data_root / found)
    (fault,) = check(data_root).faults
    assert fault.path == str(data_root / missing)
    assert (fault.problem, fault.fix) == (
        f"no such folder, but there is {found}/",
        f"if that is meant, rename it to {missing}/",
    )


def test_a_folder_above_the_data(data_root, check):
    (fault,) = check(data_root.parent).faults
    assert fault.problem == f"no such folder, but {data_root} has one"
    assert fault.fix == f"give {data_root} instead"


@pytest.mark.parametrize("folder", ["videos", "poses", "reference_images"])
def test_an_empty_folder_is_one_fault(data_root, check, folder):
    shutil.rmtree(data_root / folder)
    (data_root / folder).mkdir()
    (fault,) = check(data_root).faults
    assert fault.path == str(data_root / folder) and fault.problem.endswith("in it") and fault.fix
    (data_root / folder / "dance_001.zip").touch()
    (fault,) = check(data_root).faults
    assert fault.problem.endswith("in it, only dance_001.zip and the like")


def test_endings_in_capitals_are_read(data_root, check):
    for path in [*data_root.glob("*/*"), *data_root.glob("*/*/*")]:
        if path.is_file():
            path.rename(path.with_suffix(path.suffix.upper()))
    assert check(data_root).ok


def test_poses_of_two_estimators_are_noted(data_root, check):
    (data_root / "metadata").mkdir()
    past = {"settings": {"pose_estimator": "mediapipe"}}  # as prepare_guidance.py wrote it then
    for number, facts in enumerate(({"poses": {"name": "dwpose", "key_points": 134}}, past), 1):
        (data_root / "metadata" / f"dance_{number:03d}.json").write_text(json.dumps(facts))
    report = check(data_root)
    assert report.ok and sum("its poses are 'mediapipe', those of" in note for note in report.notes) == 1


def test_a_video_without_sound_is_no_fault(data_root, check):
    report = check(data_root)
    assert report.ok and not report.samples["dance_001"]["has_audio"]


def test_what_has_no_known_ending_is_noted(data_root, check):
    (data_root / "videos" / "dance_003.rm").touch()
    report = check(data_root)
    assert (
        report.ok and f"{data_root / 'videos' / 'dance_003.rm'} is not read: no known ending" in report.notes
    )


def test_whatever_is_not_taken_is_counted_and_named(data_root, check, tmp_path):
    videos, poses, music = (data_root / name for name in ("videos", "poses", "music_features"))
    for name in ("._dance_001.mp4", "Thumbs.db", "notes.txt", "dance_001.bak"):
        (videos / name).write_bytes(b"x")
    (videos / "day 2").mkdir()
    for folder in poses.iterdir():
        for name in ("._frame_000.json", "log.txt"):
            (folder / name).touch()
    for number in range(7):
        (music / f"song_{number}.npy").touch()
    (data_root / "depth").mkdir()
    (data_root / "README.txt").touch()
    report = check(data_root)
    songs = ", ".join(f"song_{number}.npy" for number in range(5))
    expected = [
        f"2 entries of {poses} are hidden, or a system's own: "
        "dance_001/._frame_000.json, dance_002/._frame_000.json",
        f"2 entries of {poses} are not read: no known ending: dance_001/log.txt, dance_002/log.txt",
        f"{data_root / 'README.txt'} is not read: not of the layout",
        f"{data_root / 'depth'} is not read: not of the layout, and not in --guidance_types",
        f"7 entries of {music} belong to no video: {songs} and 2 more",
        f"{videos / 'day 2'} is a folder, and not looked into",
        f"2 entries of {videos} are hidden, or a system's own: ._dance_001.mp4, Thumbs.db",
        f"2 entries of {videos} are not read: no known ending: dance_001.bak, notes.txt",
    ]
    assert sorted(note for note in report.notes if "coordinates" not in note) == sorted(expected)
    assert report.ok and report.summary().endswith("2 samples checked, no faults, 18 entries not read")
    report.write(tmp_path / "report.json")
    assert read_report(tmp_path / "report.json").num_unread == 18


def test_links_are_followed_and_one_that_leads_nowhere_is_named(data_root, check):
    video, pose = data_root / "videos" / "dance_001.mp4", data_root / "poses" / "dance_001"
    for path in (video, pose):
        path.rename(data_root.parent / path.name)
        path.symlink_to(data_root.parent / path.name)
    assert check(data_root).ok
    video.unlink()
    video.symlink_to(data_root / "gone.mp4")
    (data_root / "videos" / "dance_002.mp4").write_bytes(b"")
    (data_root / "poses" / "dance_002").rename(data_root / "poses" / "dance_003")
    report = check(data_root)
    problems = {fault.path: fault.problem for fault in report.faults}
    assert problems[str(video)] == "no such video file"
    assert "not a readable video" in problems[str(data_root / "videos" / "dance_002.mp4")]
    assert problems[str(data_root / "poses" / "dance_002")] == "no pose for video 'dance_002'"
    assert f"{data_root / 'poses' / 'dance_003'} belongs to no video" in report.notes


@pytest.mark.parametrize(
    "frames, problem", [(25, "25 rows of depth for 24 frames"), (24, "the same zero image")]
)
def test_maps_are_checked_too(data_root, check, frames, problem):
    for sample_id in ("dance_001", "dance_002"):
        (data_root / "depth" / sample_id).mkdir(parents=True)
        for number in range(24 if sample_id == "dance_002" else frames):
            value = number if sample_id == "dance_002" or frames == 25 else 0
            image = Image.new("L", (32, 32), value)
            image.save(data_root / "depth" / sample_id / f"frame_{number:03d}.png")
    (fault,) = check(data_root, guidance_types=["depth"], guidance_input_channels=[1]).faults
    assert fault.path == str(data_root / "depth" / "dance_001") and problem in fault.problem


def test_a_rate_that_does_not_fit_names_one_that_would(data_root, check):
    music = data_root / "music_features" / "dance_001"
    for number in range(24, 60):  # 30 a second
        np.save(music / f"frame_{number:03d}.npy", np.arange(5.0) + number)
    (fault,) = check(data_root, music_feature_fps=60).errors[:1]
    assert "the video's last frame is at 1.92 s" in fault.problem and "30 per second would fit" in fault.fix
    other = check(data_root, music_feature_fps=60).errors[1]
    assert "there is a row for each frame: state none" in other.fix


# -- Once per changed folder


def test_an_earlier_report_holds_until_something_changes(data_root, check, tmp_path):
    path = tmp_path / "data_report.json"
    assert read_report(path) is None
    check(data_root).write(path)
    again = check(data_root, earlier=read_report(path))
    assert again.reused and again.samples == json.loads(path.read_text())["samples"]
    assert check(data_root, earlier=again, decode_videos=False).reused  # every frame is more than asked for

    assert not check(data_root, earlier=again, resolution=32).reused
    assert not check(data_root, earlier=again, sequence_length=5).reused
    pose = data_root / "poses" / "dance_001" / "frame_003.json"
    os.utime(pose, ns=(1, 1))
    changed = check(data_root, earlier=again)
    assert not changed.reused
    (data_root / "videos" / "dance_003.mp4").touch()
    changed = check(data_root, earlier=changed)
    assert not changed.reused and not changed.ok
    assert check(data_root, earlier=changed).errors == changed.errors


def test_a_report_that_holds_names_what_lies_beside_the_samples_today(data_root, check, tmp_path):
    (data_root / "old.txt").touch()
    earlier = check(data_root)
    assert earlier.num_unread == 1
    earlier.write(tmp_path / "report.json")
    (data_root / "old.txt").unlink()
    for name in ("new.txt", "newer.txt"):
        (data_root / name).touch()
    again = check(data_root, earlier=read_report(tmp_path / "report.json"))
    assert again.reused and again.num_unread == 2 and "2 entries not read" in again.count()
    notes = [note for note in again.notes if "not read" in note]
    assert notes == again.listed and "new.txt, newer.txt" in notes[0] and len(notes) == 1


def test_first_and_last_frames_do_not_stand_for_all(data_root, check):
    quick = check(data_root, decode_videos=False)
    assert not check(data_root, earlier=quick).reused
    assert check(data_root, earlier=quick, decode_videos=False).reused


@pytest.mark.parametrize("content", ["", "{", "[]", '{"data_root": "."}'])
def test_a_half_written_report_does_not_count(tmp_path, content):
    (tmp_path / "data_report.json").write_text(content)
    assert read_report(tmp_path / "data_report.json") is None


# -- Several processes


def squared(number: int) -> int:
    if number == 11:
        os._exit(3)
    return number * number


def crashed(number: int) -> str:
    return f"{number} crashed"


def test_an_item_that_ends_its_process_is_named_and_the_others_done(capfd):
    results = map_in_processes(squared, range(40), num_workers=2, title="test", crashed=crashed)
    assert results == [n * n if n != 11 else "11 crashed" for n in range(40)]
    assert capfd.readouterr().err == ""  # no progress bar for a moment's work


def test_processes_and_one_process_find_the_same(data_root, check):
    (data_root / "music_features" / "dance_002" / "frame_003.npy").write_bytes(b"")
    for number in range(3, 10):
        for folder in data_root.iterdir():
            for source in folder.glob("dance_002*"):
                target = folder / source.name.replace("dance_002", f"dance_{number:03d}")
                shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    alone, together = (check(data_root, num_workers=number) for number in (0, 3))
    assert len(together.faults) == 8
    assert (alone.faults, alone.samples) == (together.faults, together.samples)


def test_real_sample_is_clean(real_data_root):
    report = check_data(real_data_root, ["music", "pose"], [35, 134])
    assert report.ok, report.summary()


def test_a_video_of_unusual_pixels_is_named(data_root, check, write_numbered):
    """What pixels or poses of another program are like must fit what a player shows."""
    path = data_root / "videos" / "dance_001.mp4"
    write_numbered(path, 24, shape=(4, 3), interlaced=True)
    report = check(data_root)
    assert report.samples["dance_001"]["size"] == [64, 85]
    (fault,) = report.faults
    assert fault.severity == "warning" and "as 85x64" in fault.problem and "prepare_guidance.py" in fault.fix
    assert f"{path}: pixel aspect ratio 4:3: shown as 85x64" in report.notes
    assert f"{path}: interlaced: deinterlaced frame by frame" in report.notes


def test_a_name_that_windows_cannot_hold_is_noted(data_root, check):
    for folder in data_root.iterdir():
        for path in folder.glob("dance_001*"):
            path.rename(path.with_name(path.name.replace("dance_001", "aux")))
    report = check(data_root, decode_videos=False)
    assert report.ok
    assert "'aux' cannot be used on Windows: its name is reserved on Windows (aux)" in report.notes
