"""Samples come into place whole or not at all, and are known again."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from datasets import DataError
from preparation import sample_folder
from preparation.parts import Part
from preparation.sample_folder import (
    OWNER_FILE,
    PARTIAL_FOLDER,
    SampleFolder,
    close_output_dir,
    count_music_features,
    finished_pieces,
    open_output_dir,
)
from preparation.settings import Settings
from preparation.sources import Source, describe_file, list_sources, refused_by_windows


def fill(partial: SampleFolder) -> None:
    partial.video_path.write_bytes(b"video")
    if partial.pose_format == "npy":
        np.save(partial.pose_path, np.zeros((1, 134, 3)))
    else:
        (partial.pose_path / "frame_000.json").write_text("{}")
    np.save(partial.music_path, np.zeros((1, 2)))
    partial.reference_path.write_bytes(b"picture")


@pytest.fixture
def source(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "dance.mp4").write_bytes(b"raw video")
    return list_sources(tmp_path / "raw", None)[0][0]


def publish(tmp_path, source, settings, name="dance", num_pieces=1):
    sample = SampleFolder(tmp_path / "data", name, settings.pose_format)
    fill(sample.start_aside())
    sample.publish({"source": describe_file(source.path), "sound": None, "num_pieces": num_pieces,
                    "settings": settings.fingerprint()})  # fmt: skip
    return sample


def test_published_sample_is_in_place_and_finished(tmp_path, source):
    sample = publish(tmp_path, source, Settings())
    assert all(path.exists() for path in sample.paths)
    close_output_dir(tmp_path / "data", open_output_dir(tmp_path / "data"))
    assert not (tmp_path / "data" / PARTIAL_FOLDER).exists()
    assert finished_pieces(source, Settings(), tmp_path / "data") == ({"dance"}, 1)


def test_half_written_sample_is_removed(tmp_path):
    sample = SampleFolder(tmp_path, "dance")
    fill(sample.start_aside())
    open_output_dir(tmp_path).release()
    assert not any(path.exists() for path in (*sample.paths, sample.aside().root))


@pytest.mark.parametrize("pose_format", ["json", "npy"])
@pytest.mark.parametrize("num_moved", [1, 2])
def test_half_moved_sample_is_moved_on(tmp_path, source, monkeypatch, pose_format, num_moved):
    """As if the power failed after the first files."""
    moves, settings = [], Settings(pose_format=pose_format)

    def stop_after_two(path, target):
        if "dance" in target.name and PARTIAL_FOLDER not in str(target) and len(moves) == num_moved:
            raise KeyboardInterrupt
        if PARTIAL_FOLDER not in str(target):
            moves.append(target)
        return original(path, target)

    original = sample_folder.rename
    monkeypatch.setattr(sample_folder, "rename", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path, source, settings)
    monkeypatch.undo()
    sample = SampleFolder(tmp_path / "data", "dance", pose_format)
    assert sample.pose_path.exists() == (num_moved == 2) and not sample.metadata_path.exists()
    open_output_dir(tmp_path / "data").release()
    assert finished_pieces(source, settings, tmp_path / "data") == ({"dance"}, 1)


def test_samples_of_before_the_pose_format_are_of_json(tmp_path, source):
    sample = publish(tmp_path, source, Settings())
    metadata = json.loads(sample.metadata_path.read_text())
    del metadata["settings"]["pose_format"]
    sample.metadata_path.write_text(json.dumps(metadata))
    assert finished_pieces(source, Settings(), tmp_path / "data") == ({"dance"}, 1)
    with pytest.raises(DataError, match="was made with pose_format json, not npy"):
        finished_pieces(source, Settings(pose_format="npy"), tmp_path / "data")


def test_other_settings_or_source_are_an_error(tmp_path, source):
    publish(tmp_path, source, Settings())
    with pytest.raises(DataError, match="was made with resolution 512, not 256; choose another --output_dir"):
        finished_pieces(source, Settings(resolution=256), tmp_path / "data")
    source.path.write_bytes(b"cut again")
    with pytest.raises(DataError, match=r"was made from an earlier dance\.mp4, which has changed since"):
        finished_pieces(source, Settings(), tmp_path / "data")


def test_touched_source_is_the_same(tmp_path, source):
    publish(tmp_path, source, Settings())
    source.path.touch()
    assert finished_pieces(source, Settings(), tmp_path / "data") == ({"dance"}, 1)


def test_pieces_are_counted(tmp_path, source):
    publish(tmp_path, source, Settings(), "dance_000", num_pieces=3)
    publish(tmp_path, source, Settings(), "dance_002", num_pieces=3)
    assert finished_pieces(source, Settings(), tmp_path / "data") == ({"dance_000", "dance_002"}, 3)


def test_removed_file_of_a_finished_sample_is_named(tmp_path, source):
    publish(tmp_path, source, Settings()).music_path.unlink()
    with pytest.raises(DataError, match=r"dance\.npy: is missing, though sample 'dance' was finished"):
        finished_pieces(source, Settings(), tmp_path / "data")


def test_sample_of_another_video_is_named(tmp_path, source):
    sample = publish(tmp_path, source, Settings())
    facts = json.loads(sample.metadata_path.read_text())
    facts["source"]["file"] = "dance.mov"
    sample.metadata_path.write_text(json.dumps(facts))
    with pytest.raises(DataError, match="was made from another video"):
        finished_pieces(source, Settings(), tmp_path / "data")


def test_one_run_at_a_time(tmp_path):
    lock = open_output_dir(tmp_path)
    with pytest.raises(
        DataError, match=r"another prepare_guidance\.py is writing there; wait until it is done"
    ):
        open_output_dir(tmp_path)
    lock.release()
    open_output_dir(tmp_path).release()


def test_two_videos_of_one_sample_name_do_not_mix(tmp_path, source):
    """dance.mp4 in pieces and dance_000.mp4, in two workers at one time."""
    sample = SampleFolder(tmp_path / "data", "dance_000")
    fill(sample.start_aside())
    with pytest.raises(DataError, match=r"dance_000\.mp4: is being made from another video of this run, too"):
        sample.start_aside()
    sample.publish({"source": describe_file(source.path)})
    assert sample.video_path.read_bytes() == b"video"
    with pytest.raises(DataError, match="is there already"):
        sample.start_aside()
    assert not sample.aside().root.exists()


def test_failed_sample_leaves_its_name_free(tmp_path):
    sample = SampleFolder(tmp_path, "dance")
    with pytest.raises(ValueError), sample.written_aside("dance.mp4") as partial:
        fill(partial)
        raise ValueError
    sample.start_aside()


@pytest.mark.parametrize("name", ["lock", "probe"])
def test_any_name_of_a_video_will_do(tmp_path, name):
    lock = open_output_dir(tmp_path)
    sample = SampleFolder(tmp_path, name)
    fill(sample.start_aside())
    sample.publish({})
    close_output_dir(tmp_path, lock)
    assert sample.metadata_path.is_file()


def test_features_are_counted_past_metadata_that_cannot_be_read(tmp_path):
    for name, content in (("a", '{"half'), ("b", "[]"), ("c", '{"music_features": {"channels": 35}}')):
        (tmp_path / "metadata").mkdir(exist_ok=True)
        (tmp_path / "metadata" / f"{name}.json").write_text(content)
    assert count_music_features(tmp_path) == 35


@pytest.mark.parametrize(
    "taken", ["videos/dance.MOV", "reference_images/dance.jpg", "music_features/dance/", "poses/dance/"]
)
def test_a_sample_made_by_hand_is_never_doubled(tmp_path, taken):
    """A second video or picture of one name would make a fault of both."""
    path = tmp_path / taken
    path.parent.mkdir(parents=True)
    path.mkdir() if taken.endswith("/") else path.write_bytes(b"by hand")
    with pytest.raises(DataError, match="is there already") as caught:
        SampleFolder(tmp_path, "dance").start_aside()
    assert caught.value.path == str(path)
    SampleFolder(tmp_path, "dance_2").start_aside()


def test_large_folders_are_listed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_folder, "LARGE_FOLDER", 3)
    for number in range(4):
        (tmp_path / "videos").mkdir(exist_ok=True)
        (tmp_path / "videos" / f"dance_{number}.MOV").touch()
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(Path(path).name) or scandir(path))
    for name in ("a", "b", "c"):
        SampleFolder(tmp_path, name).check_free()
    assert listed.count("videos") == 1
    (tmp_path / "videos" / "d.mp4").touch()  # by another machine
    for name in ("dance_3", "d"):
        with pytest.raises(DataError, match="is there already"):
            SampleFolder(tmp_path, name).check_free()


def test_a_part_and_a_whole_run_keep_off_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(sample_folder, "STARTING_SECONDS", 0.01)
    one, other = open_output_dir(tmp_path, Part(1, 2)), open_output_dir(tmp_path, Part(2, 2))
    for part, holder in ((Part(1, 2), "1/2"), (None, "1/2"), (Part(3, 3), "1/2")):
        with pytest.raises(DataError, match=rf"prepare_guidance.py \(--shard {holder}\) is writing there"):
            open_output_dir(tmp_path, part)
    close_output_dir(tmp_path, one, Part(1, 2))
    close_output_dir(tmp_path, other, Part(2, 2))
    assert not list(tmp_path.iterdir())
    whole = open_output_dir(tmp_path)
    with pytest.raises(DataError, match=r"another prepare_guidance.py is writing there"):
        open_output_dir(tmp_path, Part(1, 2))
    close_output_dir(tmp_path, whole)


def test_a_part_tidies_after_itself_alone(tmp_path):
    names = ["춤", "a b"]  # parts 4 and 3 of 8
    for name in names:
        partial = SampleFolder(tmp_path, f"{name}_000").start_aside()
        (partial.root / OWNER_FILE).write_text(json.dumps({"file": f"{name}.mp4"}))
    open_output_dir(tmp_path, Part(4, 8)).release()
    assert [path.name for path in (tmp_path / PARTIAL_FOLDER).iterdir()] == ["a b_000"]


def test_a_process_given_up_as_dead_publishes_nothing(tmp_path):
    sample = SampleFolder(tmp_path, "dance")
    with (
        pytest.raises(DataError, match="is made by another process"),
        sample.written_aside("dance.mp4") as partial,
    ):
        fill(partial)
        (partial.root / OWNER_FILE).write_text('{"file": "dance.mp4", "process": "another"}')
        sample.publish({})
    assert not sample.metadata_path.exists()


def test_what_windows_cannot_hold_is_refused_there():
    sources = [Source(Path(f"{name}.mp4"), name) for name in ("aux", "dance", "d" * 120)]
    kept, faults = refused_by_windows(sources, Path("/data"))
    assert [source.name for source in kept] == ["dance"]
    assert "its name is reserved on Windows (aux); rename it" in str(faults[0])
    assert "choose an --output_dir with a shorter path" in str(faults[1])
