"""The script that samples dances, run in process: whole tracks, and one line for every wrong input."""

import errno
import inspect
import json
import re
import signal
import wave

import numpy as np
import pytest
from PIL import Image

import sample_music_to_pose
from datasets import VideoReader
from datasets.guidance.tracks import open_track, read_pose_folder

RATE = 8


@pytest.fixture
def flags(tiny_dancer, standing_file, tmp_path):
    """The flags that every run here needs, as a dict; None: without a value, False: left out."""
    np.save(tmp_path / "song.npy", np.random.default_rng(0).normal(size=(10, 35)))
    return {
        "model_path": tiny_dancer, "music": tmp_path / "song.npy", "reference_pose": standing_file,
        "output_dir": tmp_path / "poses" / "new", "num_inference_steps": 1, "device": "cpu",
    }  # fmt: skip


def run(flags: dict) -> int:
    argv = []
    for name, value in flags.items():
        if value is not False:
            values = [] if value is None else value if isinstance(value, list) else [value]
            argv += [f"--{name}", *map(str, values)]
    return sample_music_to_pose.main(argv)


def entries(folder) -> list[str]:
    """Return everything below a folder, hidden files too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def write_tone(path, seconds=2):
    """Write a wave file and return its path."""
    samples = (8000 * np.sin(np.arange(round(44_100 * seconds)) / 16)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 44_100, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    return path


def test_music_and_a_pose_to_a_track_and_its_video(flags, tmp_path):
    flags["audio"] = write_tone(tmp_path / "song.wav")
    assert run(flags) == 0
    folder = flags["output_dir"]
    assert entries(folder) == [*(f"frame_{frame:05d}.json" for frame in range(10)), "meta.json"]
    assert json.loads((folder / "frame_00003.json").read_text()).keys() >= {"keypoints", "width", "height"}
    track = open_track("pose", folder)
    assert track.fps == RATE and track.kind.stated_size(track, ()) == (64, 64)
    poses = read_pose_folder(folder, 134)
    assert poses.shape == (10, 134, 3) and (poses[..., 2] == 1).any()
    video = VideoReader(folder.with_name("new.mp4"))
    assert len(video) == 10 and video.has_audio and video.frame_rate == pytest.approx(RATE)
    assert video.read([5]).max() > 200  # a skeleton on black
    assert entries(folder.parent) == sorted(["new", "new.mp4", *(f"new/{name}" for name in entries(folder))])


def test_several_dances_and_the_seed(flags, tmp_path):
    def poses(name, **changes):
        assert run(flags | {"output_dir": tmp_path / name} | changes) == 0
        return {path.name: read_pose_folder(path, 134) for path in tmp_path.glob(f"{name}*") if path.is_dir()}

    several, one = poses("several", num_tracks=2), poses("one")["one"]
    assert several.keys() == {"several_0", "several_1"}
    np.testing.assert_allclose(several["several_0"], one, atol=1e-4)
    assert np.abs(several["several_1"] - one).max() > 1e-3
    np.testing.assert_array_equal(poses("same")["same"], one)
    assert np.abs(poses("other", seed=7)["other"] - one).max() > 1e-3


def test_a_part_of_a_track_is_kept(flags, tmp_path):
    assert run(flags) == 0
    kept = flags["output_dir"]
    part = {"output_dir": tmp_path / "part", "seed": 7, "keep_poses": kept, "keep_seconds": [0.5, 1]}
    assert run(flags | part) == 0
    difference = np.abs(read_pose_folder(tmp_path / "part", 134) - read_pose_folder(kept, 134)).max((1, 2))
    assert (difference[4:8] < 1e-4).all() and difference[:4].max() > 1e-3
    limb = {
        "output_dir": tmp_path / "limb",
        "seed": 7,
        "keep_poses": kept,
        "keep_limbs": ["left_arm", "head"],
    }
    assert run(flags | limb) == 0


def test_a_song_and_an_image(flags, standing_pose, tmp_path, monkeypatch):
    """What is heard and seen is tested where it is made; here it meets."""
    heard = {}

    def features(path, rate, *, recipe, num_features, part):
        heard.update(path=path, rate=rate, recipe=recipe)
        return np.zeros((12, num_features), np.float32)

    monkeypatch.setattr("sampling.dancing.song_features", features)
    monkeypatch.setattr("sampling.dancing.pose_of_image", lambda image, path: standing_pose)
    song, image = write_tone(tmp_path / "song.wav"), tmp_path / "person.png"
    Image.fromarray(np.zeros((128, 64, 3), np.uint8)).save(image)
    flags |= {"music": False, "song": song, "reference_pose": False, "reference_image": image}
    assert run(flags) == 0
    assert heard == {"path": str(song), "rate": RATE, "recipe": "aist35"}
    video = VideoReader(flags["output_dir"].with_name("new.mp4"))
    assert len(video) == 12 and video.has_audio and video.size == (512, 256)


def test_what_exists_is_replaced_only_when_asked_and_only_a_track(flags, capsys):
    assert run(flags) == 0
    video = flags["output_dir"].with_name("new.mp4")
    before = video.read_bytes()
    assert run(flags | {"seed": 7}) == 2 and "--overwrite" in capsys.readouterr().err
    assert video.read_bytes() == before
    assert run(flags | {"seed": 7, "overwrite": None}) == 0
    assert video.read_bytes() != before
    (flags["output_dir"] / "mine.txt").write_text("mine")
    assert run(flags | {"overwrite": None}) == 2
    assert "is not what this script wrote" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["write_pose", "draw_pose"])
@pytest.mark.parametrize("had_one", [False, True])
def test_a_full_disk_leaves_nothing_half_written(flags, monkeypatch, capsys, where, had_one):
    if had_one:
        assert run(flags) == 0
    before = entries(flags["output_dir"].parent.parent)
    original, calls = getattr(sample_music_to_pose, where), []

    def fail(*arguments):
        calls.append(1)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(sample_music_to_pose, where, fail)
    assert run(flags | {"overwrite": None, "num_tracks": 1}) == 2
    assert "the disk is full; free some space and run the same command again" in capsys.readouterr().err
    assert set(entries(flags["output_dir"].parent.parent)) - {"poses"} == set(before) - {"poses"}


def test_ctrl_c_leaves_nothing_half_written(flags, monkeypatch, capsys):
    original = sample_music_to_pose.draw_pose

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGINT)
        return original(*arguments)

    monkeypatch.setattr(sample_music_to_pose, "draw_pose", interrupted)
    assert run(flags) == 130
    assert capsys.readouterr().err.strip().endswith("sample_music_to_pose.py: stopped")
    assert entries(flags["output_dir"].parent) == []


def test_every_flag_is_used():
    source = inspect.getsource(sample_music_to_pose)
    flags = [action.dest for action in sample_music_to_pose.build_parser()._actions if action.dest != "help"]
    assert [flag for flag in flags if not re.search(rf"arguments\.{flag}\b", source)] == []


WRONG_INPUTS = {
    "no model": ({"model_path": "{root}/none"}, "--model_path .*none is no folder: expected the final/"),
    "no music": ({"music": False}, "one of the arguments --song --music is required"),
    "both": ({"song": "x.mp3"}, "not allowed with argument"),
    "nobody": ({"reference_pose": False}, "--reference_image --reference_pose is required"),
    "no image": ({"reference_pose": False, "reference_image": "{root}/a.png"}, "a.png: no such image"),
    "no reference": ({"reference_pose": "{root}/none.json"}, "none.json: no such pose"),
    "no song": ({"music": False, "song": "{root}/none.mp3"}, "none.mp3: no such sound file"),
    "no sound": ({"audio": "{root}/none.mp3"}, "none.mp3: no such sound file"),
    "a rate for no music": ({"music": False, "song": "x.mp3", "music_feature_fps": 8}, "there is no --music"),
    "no part": ({"keep_poses": "x"}, "goes together with --keep_seconds FROM TO, --keep_limbs, or both"),
    "a part of nothing": ({"keep_limbs": "head"}, "--keep_poses goes together"),
    "no such limb": ({"keep_poses": "x", "keep_limbs": "tail"}, "invalid choice: 'tail'"),
    "a span of nothing": ({"keep_poses": "x", "keep_seconds": [2, 2]}, "FROM must be less than TO"),
    "too many steps": ({"num_inference_steps": 1001}, "1000 steps at most"),
    "no name": ({"output_dir": "{root}/.."}, "give the name of a folder to make"),
    "below a file": ({"output_dir": "{root}/song.npy/a/b"}, "its parent cannot be made"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_a_wrong_input_is_one_line(flags, tmp_path, case, capsys):
    changes, message = WRONG_INPUTS[case]
    fill = lambda value: value.replace("{root}", str(tmp_path)) if isinstance(value, str) else value  # noqa: E731
    assert run(flags | {name: fill(value) for name, value in changes.items()}) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sample_music_to_pose.py: error: ") and re.search(message, error), error
    assert entries(tmp_path / "poses") == []
