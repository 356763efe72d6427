"""Poses packed into one file per video: read as before to the bit, nothing lost, stopped and resumed."""

import json
import shutil

import numpy as np
import pytest

import pack_guidance
from datasets import packed_tracks


def items(dataset) -> list:
    return [
        dataset.read_clip(index, 3)["guidance"]["pose"].numpy().tobytes() for index in range(len(dataset))
    ]


def set_frames(root, name, change) -> None:
    for number, path in enumerate(sorted((root / "poses" / name).glob("*.json"))):
        path.write_text(json.dumps(change(json.loads(path.read_text()), number)))


def pack(root, *flags) -> int:
    return pack_guidance.main(["--data_dir", str(root), "--tracks_only", "--num_workers", "0", *flags])


def in_pixels(content, number):
    points = [[64 * x, 64 * y, c] for x, y, c in content["keypoints"]]
    return content | {"keypoints": points, "coordinates": "pixel"}


def near_the_origin_in_pixels(content, number):  # by themselves they would be taken for 0..1
    return content | {"keypoints": [[0.7, 0.3 + 0.01 * number, 1]] * 134, "coordinates": "pixel"}


def openpose(content, number):
    person = {"pose_keypoints_2d": np.ravel([[number + 9 + n, 30.1 - n, 0.9] for n in range(25)]).tolist()}
    return {
        "people": [{"pose_keypoints_2d": [50, 3, 1, 52, 4, 1] * 12 + [50, 3, 1]}, person][
            :: 1 if number % 2 else -1
        ]
    }


@pytest.mark.parametrize(
    "change",
    [lambda content, number: content, in_pixels, near_the_origin_in_pixels, openpose],
    ids=["as they are", "pixels", "pixels near the origin", "openpose"],
)
def test_packed_poses_are_read_to_the_bit_as_before(data_root, make, capsys, change):
    set_frames(data_root, "dance_001", change)
    files = {path.name: path.read_bytes() for path in (data_root / "poses" / "dance_001").iterdir()}
    before = items(make(data_root))
    assert pack(data_root) == 0
    assert capsys.readouterr().out == f"{data_root}: 2 pose tracks packed\n"
    assert items(make(data_root)) == before
    assert sorted(path.name for path in (data_root / "poses").iterdir()) == ["dance_001.npy", "dance_002.npy"]
    kept = data_root / "poses_json" / "dance_001"
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == files
    assert pack(data_root) == 0 and " 0 pose tracks packed" in capsys.readouterr().out


def test_units_of_the_whole_folder_stay(data_root, make):
    (data_root / "poses" / "meta.json").write_text('{"coordinates": "pixel"}')
    before = items(make(data_root))
    assert pack(data_root) == 0 and items(make(data_root)) == before


def test_stopped_in_between_the_same_command_goes_on(data_root, make, check, monkeypatch, capsys):
    before = items(make(data_root))
    with monkeypatch.context() as patched:
        patched.setattr(packed_tracks, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert pack(data_root) == 130
    assert "the same command goes on" in capsys.readouterr().err
    (fault,) = check(data_root).faults  # both are there
    assert fault.path.endswith("dance_001.npy") and "there is also a folder" in fault.problem
    assert pack(data_root) == 0 and items(make(data_root)) == before


def test_two_tracks_of_one_sample_are_not_chosen_from(data_root, capsys):
    np.save(data_root / "poses" / "dance_001.npy", np.full((24, 134, 3), 0.5, np.float32))
    assert pack(data_root) == 2
    captured = capsys.readouterr()
    assert "1 pose track packed, 1 left as they are" in captured.out
    assert "there is also a folder of other poses, dance_001" in captured.err
    assert (data_root / "poses" / "dance_001").is_dir() and (data_root / "poses" / "dance_001.npy").is_file()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("frame_003.json", "{", "is not valid JSON"),
        ("meta.json", '{"fps": 12}', "states fps of this track alone"),
    ],
)
def test_what_cannot_be_packed_stays_and_has_a_line(data_root, capsys, name, content, words):
    (data_root / "poses" / "dance_001" / name).write_text(content)
    assert pack(data_root) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert (data_root / "poses" / "dance_001" / name).read_text() == content
    assert not (data_root / "poses" / "dance_001.npy").exists()


def test_a_stated_size_is_not_lost_where_no_video_tells_it(data_root, capsys):
    shutil.rmtree(data_root / "videos")
    set_frames(data_root, "dance_001", lambda content, number: content | {"width": 96, "height": 64})
    assert pack(data_root) == 2 and "states the size" not in capsys.readouterr().out
    (data_root / "metadata").mkdir()
    (data_root / "metadata" / "dance_001.json").write_text('{"size": [64, 96]}')
    assert pack(data_root) == 0


def test_no_poses_is_one_line(data_root, capsys):
    shutil.rmtree(data_root / "poses")
    assert pack(data_root) == 2
    assert capsys.readouterr().err.startswith("pack_guidance.py: error: ")
