"""The command: a folder of videos in, a data folder out; what fails is named, what is done is kept."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest

import prepare_guidance
from datasets import DataError, GuidanceDataset, VideoReader, read_pose_folder, write_video
from demo.music import write_wave
from preparation.parts import MANIFEST_FOLDER, part_number
from preparation.sample_folder import PARTIAL_FOLDER, disk_error
from preparation.sources import list_sources, list_unread
from preparation.workers import Done, prepare_one
from train_guidance import main as train

pytest.importorskip("librosa", reason="pip install -r requirements-prepare.txt")

MARKER = Path(__file__).parent / "preparation" / "marker_pose.py"


@pytest.fixture(scope="module")
def raw_dir(tmp_path_factory):
    """Two good videos (a red square dances, one click per second), one without sound, one no video."""
    root = tmp_path_factory.mktemp("raw")
    frames = np.full((24, 96, 64, 3), 60, np.uint8)
    for number, frame in enumerate(frames):
        frame[30:50, 10 + number : 30 + number] = (230, 20, 20)
    sound = np.zeros(2 * 22_050)
    sound[11_025:11_200] = sound[33_075:33_250] = np.random.default_rng(0).uniform(-0.5, 0.5, 175)
    write_wave(root / "click.tmp", sound)
    for name in ("a b.mp4", "춤.mp4"):
        write_video(root / name, frames, 12, audio_path=root / "click.tmp")
    write_video(root / "silent.mp4", frames, 12)
    (root / "text.mp4").write_text("this is no video")
    return root


def arguments(raw_dir, output_dir, *more):
    functions = ["--pose_estimator", f"{MARKER}:find_markers", "--music_features", f"{MARKER}:level"]
    folders = ["--input_dir", str(raw_dir), "--output_dir", str(output_dir)]
    return [*folders, "--num_workers", "1", *functions, *more]


def test_good_videos_are_prepared_and_others_named(raw_dir, tmp_path, capfd):
    command = arguments(raw_dir, tmp_path / "data")
    assert prepare_guidance.main(command) == 2
    output, errors = capfd.readouterr()
    assert "a b.mp4 -> a b: 24 frames 64x96, 2.0 s at 12 per second, 1 person" in output
    faults = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(faults) == 2 and "Traceback" not in errors
    assert "silent.mp4: has no sound; put a sound file" in faults[0]
    assert "text.mp4: is not a readable video" in faults[1] and "re-encode it" in faults[1]
    assert "2 samples made of 4 videos" in output and "2 faults" in output
    folders = {path.name for path in (tmp_path / "data").iterdir()}
    assert folders == {"videos", "poses", "music_features", "reference_images", "metadata"}
    assert sorted(path.name for path in (tmp_path / "data" / "videos").iterdir()) == ["a b.mp4", "춤.mp4"]

    # The command that it prints finds nothing wrong.
    check = next(line for line in output.splitlines() if line.endswith("--check_data"))
    assert "--guidance_input_channels 2 134" in check
    small = ["--resolution", "64", "--sequence_length", "8", "--output_dir", str(tmp_path / "out")]
    flags = ["--guidance_types", "music", "pose", "--guidance_input_channels", "2", "134", "--check_data"]
    assert train(["--train_data_dir", str(tmp_path / "data"), *flags, *small]) == 0

    # A second run does not do it again, and other settings do not touch it.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    (tmp_path / "good").mkdir()
    for name in ("a b.mp4", "춤.mp4"):
        (tmp_path / "good" / name).symlink_to(raw_dir / name)
    command[1] = str(tmp_path / "good")
    capfd.readouterr()
    assert prepare_guidance.main(command) == 0
    output, _ = capfd.readouterr()
    assert "a b.mp4: done already (a b), skipped" in output and "0 samples made of 0 videos" in output
    assert prepare_guidance.main([*command, "--resolution", "64", "--min_seconds", "0.5"]) == 2
    _, errors = capfd.readouterr()
    assert errors.count("was made with min_seconds 1.0, not 0.5; choose another --output_dir") == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


def test_poses_of_a_video_in_one_file(raw_dir, tmp_path, capfd):
    """The same numbers as in JSON files; known as finished in its own format only."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "dance.mp4").symlink_to(raw_dir / "a b.mp4")
    for name in ("npy", "json"):
        command = arguments(tmp_path / "raw", tmp_path / name)
        assert prepare_guidance.main([*command, "--pose_format", name]) == 0
    points = np.load(tmp_path / "npy" / "poses" / "dance.npy", allow_pickle=False)
    assert points.shape == (24, 134, 3) and points.dtype == np.float32 and points[..., 2].any()
    np.testing.assert_array_equal(points, read_pose_folder(tmp_path / "json" / "poses" / "dance", 134))
    assert [path.name for path in (tmp_path / "npy" / "poses").iterdir()] == ["dance.npy"]
    clips = [
        GuidanceDataset(tmp_path / name, ["pose"], [134], resolution=64)[0]["guidance"]["pose"]
        for name in ("npy", "json")
    ]
    assert clips[0].equal(clips[1])

    capfd.readouterr()
    command = arguments(tmp_path / "raw", tmp_path / "npy")
    assert prepare_guidance.main([*command, "--pose_format", "npy"]) == 0
    assert "done already (dance), skipped" in capfd.readouterr()[0]
    assert prepare_guidance.main(command) == 2
    assert "was made with pose_format npy, not json; choose another" in capfd.readouterr()[1]


def test_whatever_is_not_taken_is_counted_and_named(raw_dir, tmp_path, capfd):
    raw = tmp_path / "raw"
    (raw / "day 2").mkdir(parents=True)
    (raw / "day 2" / "b.mp4").touch()
    shutil.copy(raw_dir / "a b.mp4", raw / "DANCE.MP4")
    shutil.copy(raw_dir / "a b.mp4", raw / "clip")
    for name in ("._DANCE.MP4", ".DS_Store", "Thumbs.db", "song.wav", "notes.txt", "photo.jpg"):
        (raw / name).write_bytes(b"some words\n")
    (raw / "nothing.mp4").touch()
    (raw / "gone.mp4").symlink_to(raw / "no such file")
    assert prepare_guidance.main(arguments(raw, raw / "data")) == 2
    output, errors = capfd.readouterr()
    assert "DANCE.MP4 -> DANCE: 24 frames" in output
    hidden = ".DS_Store, ._DANCE.MP4, Thumbs.db"
    day_2 = "is a folder, and not looked into; for its 1 video give --input_dir"
    for line in (
        f"note: 3 entries of {raw} are hidden, or a system's own: {hidden}",
        f"note: {raw / 'day 2'} {day_2} {raw / 'day 2'}",
        f"note: {raw / 'song.wav'} is not heard: no video has its name",
        f"note: 2 entries of {raw} are not read: no known ending: notes.txt, photo.jpg",
        f"note: {raw / 'clip'} is not read: no known ending; it holds a video, give it the ending .mp4",
    ):
        assert line in output.splitlines()
    assert output.count("note: ") == 5 and f"2 faults, 8 entries of {raw} not taken" in output
    assert "nothing.mp4: is empty, 0 bytes; copy it again" in errors
    assert "gone.mp4: is a link that leads nowhere; remove it" in errors


@pytest.mark.parametrize("ending", [".m4v", ".MPG", ".ts", ".wmv", ".flv", ".3gp", ".MKV"])
def test_a_video_of_any_usual_ending_is_taken(tmp_path, ending):
    path = tmp_path / f"dance{ending}"
    codecs = {".MPG": "mpeg2video", ".wmv": "wmv2"}
    with av.open(str(path), "w", format={".MPG": "mpeg", ".MKV": "matroska"}.get(ending)) as output:
        stream = output.add_stream(codecs.get(ending, "libx264"), rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 50 * number, np.uint8), "rgb24")
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    ((source,), faults) = list_sources(tmp_path, None)
    assert source.path == path and not faults and not list_unread(tmp_path, [source], [], tmp_path / "data")
    means = [frame.mean() for frame in VideoReader(path).iterate()]
    np.testing.assert_allclose(means, [0, 50, 100, 150, 200], atol=4)


@pytest.fixture
def in_this_process(monkeypatch):
    """Let no processes be started: seconds each."""

    def run(sources, settings, output_dir, *, num_workers):
        for source in sources:
            yield prepare_one(source, settings, output_dir, lambda num_frames: None)

    monkeypatch.setattr(prepare_guidance, "run_workers", run)


def test_parts_make_the_folder_that_one_run_makes(raw_dir, tmp_path, capfd, in_this_process):
    assert prepare_guidance.main(arguments(raw_dir, tmp_path / "one")) == 2
    command = arguments(raw_dir, tmp_path / "data")
    names = {path.stem for path in raw_dir.glob("*.mp4")}
    part_of = {name: part_number(name, 8) for name in names}  # each in a part of its own
    assert sorted(part_of.values()) == [2, 3, 4, 8]
    for part in (1, 2, 4):  # that of none, a text, a good video
        assert prepare_guidance.main([*command, "--shard", f"{part}/8"]) == 2 * (part == part_of["text"])
    capfd.readouterr()
    assert prepare_guidance.main([*command, "--merge"]) == 2
    output, errors = capfd.readouterr()
    assert "1 sample of 1 of 4 videos are there, 3 missing" in output
    for part in (3, 8):
        left = f"part {part}/8 has not begun (1 of its videos are missing)"
        assert f"error: {left}: run it with --shard {part}/8" in errors.splitlines()
    assert "text.mp4: is not a readable video" in errors

    for part in (3, 8):
        prepare_guidance.main([*command, "--shard", f"{part}/8"])
    capfd.readouterr()
    assert prepare_guidance.main([*command, "--merge"]) == 2
    output, errors = capfd.readouterr()
    assert "2 samples of 2 of 4 videos are there, 2 missing" in output and "--check_data" in output
    assert f"error: part 8/8: {raw_dir / 'silent.mp4'}: has no sound" in errors
    one, parts = (
        {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for root in (tmp_path / "one", tmp_path / "data")
    )
    manifests = {path for path in parts if path.parts[0] == MANIFEST_FOLDER}
    assert len(manifests) == 5 and one == {path: parts[path] for path in parts.keys() - manifests}


def test_every_second_pose_is_interpolated_and_that_is_remembered(raw_dir, tmp_path, capfd, in_this_process):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "dance.mp4").symlink_to(raw_dir / "a b.mp4")
    for name, stride in (("one", "1"), ("two", "2")):
        command = [*arguments(tmp_path / "raw", tmp_path / name), "--pose_format", "npy"]
        assert prepare_guidance.main([*command, "--pose_stride", stride]) == 0
    every, second = (np.load(tmp_path / name / "poses" / "dance.npy") for name in ("one", "two"))
    estimated = [*range(0, 24, 2), 23]
    np.testing.assert_array_equal(second[estimated], every[estimated])
    between = np.setdiff1d(np.arange(24), estimated)
    np.testing.assert_allclose(second[between], (every[between - 1] + every[between + 1]) / 2, atol=2e-5)
    videos = [(tmp_path / name / "videos" / "dance.mp4").read_bytes() for name in ("one", "two")]
    assert videos[0] == videos[1]
    metadata = json.loads((tmp_path / "two" / "metadata" / "dance.json").read_text())
    assert metadata["settings"]["pose_stride"] == 2
    assert prepare_guidance.main(command) == 2
    assert "was made with pose_stride 2, not 1" in capfd.readouterr().err


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_run_leaves_nothing_half_written(raw_dir, tmp_path, signal_number, capfd):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "dance.mp4").symlink_to(raw_dir / "a b.mp4")
    data_dir = tmp_path / "data"
    command = arguments(tmp_path / "raw", data_dir)
    slow = [f"{MARKER}:MarkerPose" if word.endswith(":find_markers") else word for word in command]
    process = subprocess.Popen(
        [sys.executable, "prepare_guidance.py", *slow], cwd=Path(prepare_guidance.__file__).parent,
        start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    # The first look at 24 frames takes it 5 seconds: it is stopped in that, or soon after.
    wait_for(lambda: (data_dir / PARTIAL_FOLDER).exists() or process.poll() is not None)
    time.sleep(1 if signal_number == signal.SIGKILL else 3)
    if signal_number == signal.SIGINT:
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    else:
        process.kill()
    _, errors = process.communicate(timeout=120)  # ends when the workers' copies of the pipes are closed too
    assert "Traceback" not in errors
    if signal_number == signal.SIGINT:
        assert process.returncode == 130 and "goes on where it was" in errors
        assert not (data_dir / PARTIAL_FOLDER).exists()
    assert not [path for folder in data_dir.glob("[!.]*") for path in folder.iterdir()]
    if signal_number == signal.SIGKILL:
        assert prepare_guidance.main(command) == 0
        assert (data_dir / "metadata" / "dance.json").is_file() and not (data_dir / PARTIAL_FOLDER).exists()


def test_worker_that_dies_takes_one_video_with_it(raw_dir, tmp_path, capfd):
    (tmp_path / "raw").mkdir()
    for name in ("one.mp4", "two.mp4"):
        (tmp_path / "raw" / name).symlink_to(raw_dir / "a b.mp4")
    command = arguments(tmp_path / "raw", tmp_path / "data")
    command[command.index("--pose_estimator") + 1] = f"{MARKER}:crash"
    assert prepare_guidance.main(command) == 2
    _, errors = capfd.readouterr()
    assert errors.count("the process that prepared it ended (exit code 3); if the memory was full") == 2


def test_wrong_function_stops_the_run(raw_dir, tmp_path, capfd):
    command = arguments(raw_dir, tmp_path / "data")
    command[command.index("--pose_estimator") + 1] = f"{MARKER}:coco_points"
    assert prepare_guidance.main(command) == 2
    errors = capfd.readouterr()[1].splitlines()
    assert errors[-1].startswith("prepare_guidance.py: error: --pose_estimator")
    assert "returned an array of shape [17, 3]; expected" in errors[-1]


def test_what_failed_before_the_run_stopped_is_told(raw_dir, tmp_path, monkeypatch, capsys):
    def events(sources, settings, output_dir, *, num_workers):
        yield Done(sources[0], fault=DataError(sources[0].path, "has no sound", "add some"))
        yield Done(sources[1], fault=DataError(output_dir, "the disk is full", "make room"), is_fatal=True)

    monkeypatch.setattr(prepare_guidance, "run_workers", events)
    assert prepare_guidance.main(arguments(raw_dir, tmp_path / "data")) == 2
    errors = capsys.readouterr().err
    assert "error: " + str(DataError(raw_dir / "a b.mp4", "has no sound", "add some")) in errors
    assert f"prepare_guidance.py: error: {tmp_path / 'data'}: the disk is full; make room" in errors


def one_line(capsys):
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("prepare_guidance.py: error: ")
    return errors[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--resolution", "32"], "--resolution 32: at least 64, or 0"),
        (["--max_seconds", "0.5"], "is less than --min_seconds 1"),
        (["--max_seconds", "long"], "invalid float value: 'long'"),
        (["--pose_estimator", "openpose"], "expected dwpose, mediapipe or your own MODULE:NAME"),
        (["--pose_estimator", "dwpose"], "--pose_estimator dwpose and --dwpose_dir go together"),
        (["--music_features", "mfcc"], "expected aist35, beat or your own MODULE:FUNCTION"),
        (["--music_file", "a.wav"], "--music_file is for one video, there are 4"),
        (["--output_dir", ""], "--output_dir is empty: name a folder"),
        (["--fps", "30"], "unrecognized arguments: --fps 30. --help lists all flags"),
    ],
)
def test_wrong_flag_is_one_line(raw_dir, tmp_path, capsys, flags, message):
    assert prepare_guidance.main([*arguments(raw_dir, tmp_path / "data"), *flags]) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' file names are always text")
def test_name_that_is_no_text_is_a_fault_with_a_fix(raw_dir, tmp_path, capfd):
    (tmp_path / "raw").mkdir()
    for name in (b"dance.mp4", b"t\xe4nzer.mp4"):  # the second in Latin-1
        (tmp_path / "raw" / os.fsdecode(name)).symlink_to(raw_dir / "a b.mp4")
    assert prepare_guidance.main(arguments(tmp_path / "raw", tmp_path / "data")) == 2
    output, errors = capfd.readouterr()
    assert "its bytes are not UTF-8; rename it" in errors and "Traceback" not in errors
    assert "1 sample made of 1 video" in output
    assert [path.name for path in (tmp_path / "data" / "videos").iterdir()] == ["dance.mp4"]


def test_folder_without_videos(tmp_path, capsys):
    (tmp_path / "raw" / "day 1").mkdir(parents=True)
    assert prepare_guidance.main(arguments(tmp_path / "raw", tmp_path / "data")) == 2
    assert "no videos in it; put videos there" in one_line(capsys)
    (tmp_path / "raw" / "day 1" / "a.mp4").touch()
    assert prepare_guidance.main(arguments(tmp_path / "raw", tmp_path / "data")) == 2
    assert f"give --input_dir {tmp_path / 'raw' / 'day 1'}" in one_line(capsys)


def test_unwritable_output(raw_dir, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert prepare_guidance.main(arguments(raw_dir, tmp_path / "file" / "data")) == 2
    assert "cannot be written to (Not a directory); choose another --output_dir" in one_line(capsys)


def test_full_disk_is_told_from_other_errors(tmp_path):
    message = str(disk_error(tmp_path, OSError(28, "No space left on device")))
    assert "the disk is full; free some space and run the same command again" in message
    assert disk_error(tmp_path, OSError(5, "I/O error")) is None


def test_missing_libraries_are_named(raw_dir, tmp_path, capsys, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert prepare_guidance.main(arguments(raw_dir, tmp_path / "data")) == 2
    assert "librosa is not installed; install it with: pip install -r" in one_line(capsys)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mediapipe" else object())
    command = arguments(raw_dir, tmp_path / "data", "--pose_estimator", "mediapipe")
    assert prepare_guidance.main(command) == 2
    assert "pip install --no-deps -r requirements-mediapipe.txt" in one_line(capsys)


def test_same_name_twice_is_named(raw_dir, tmp_path, capsys):
    for name in ("dance.mp4", "dance.mov"):
        (tmp_path / name).symlink_to(raw_dir / "a b.mp4")
    sources, faults = list_sources(tmp_path, None)
    assert [source.path.name for source in sources] == ["dance.mov"]
    assert "dance.mp4: has the same name as dance.mov; rename one of them" in str(faults[0])
