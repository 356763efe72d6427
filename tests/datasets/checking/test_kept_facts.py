"""What is kept of each sample: read once, until its files change, and never taken for what it is not."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from datasets import write_video
from datasets.checking import folder_check, looks
from datasets.checking.kept_facts import KeptFacts
from datasets.checking.sample_check import check_sample
from datasets.data_folder import list_data_folder
from datasets.media import video


@pytest.fixture
def kept(tmp_path) -> KeptFacts:
    return KeptFacts(tmp_path / "out" / "data_facts.sqlite")


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The samples that are checked, in this process."""
    names = []

    def checked(folder, settings, sample):
        names.append(sample.sample_id)
        return check_sample(folder, settings, sample)

    monkeypatch.setattr(folder_check, "check_sample", checked)
    return names


def replaced_with_its_old_date(path: Path) -> None:
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


MUSIC, POSES = "music_features/dance_001", "poses/dance_001"
CHANGES = {
    "a file's date": lambda root: os.utime(root / POSES / "frame_003.json", ns=(1, 1)),
    "a file's content": lambda root: replaced_with_its_old_date(root / MUSIC / "frame_003.npy"),
    "a file more": lambda root: (root / POSES / "notes.txt").touch(),
    "a file less": lambda root: (root / POSES / "frame_023.json").unlink(),
    "a new name": lambda root: (root / POSES / "frame_023.json").rename(root / POSES / "x_23.json"),
    "the video": lambda root: replaced_with_its_old_date(root / "videos/dance_001.mp4"),
    "the image": lambda root: (root / "reference_images/dance_001.png").unlink(),
    "a link": lambda root: relinked(root / MUSIC),
}  # fmt: skip


def relinked(folder: Path) -> None:
    shutil.copytree(folder.resolve(), folder.parent.parent / "elsewhere")
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent.parent / "elsewhere")


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_sample_is_read_again_and_no_other(data_root, check, kept, read, change):
    first = check(data_root, kept=kept)
    assert read == ["dance_001", "dance_002"] and first.ok
    change(data_root)
    again = check(data_root, kept=kept)
    assert read[2:] == ["dance_001"]
    assert again.fingerprint != first.fingerprint and again.samples["dance_002"] == first.samples["dance_002"]
    fresh = check(data_root)
    assert (again.faults, again.samples, again.notes) == (fresh.faults, fresh.samples, fresh.notes)


def test_samples_that_come_and_go(data_root, check, kept, read, tmp_path):
    check(data_root, kept=kept)
    away = tmp_path / "away.mp4"
    (data_root / "videos" / "dance_001.mp4").rename(away)
    assert list(check(data_root, kept=kept).samples) == ["dance_002"] and len(read) == 2
    assert kept.known().keys() == {"dance_002"}
    away.rename(data_root / "videos" / "dance_001.mp4")
    assert list(check(data_root, kept=kept).samples) == ["dance_001", "dance_002"]
    assert read[2:] == ["dance_001"]


def test_other_settings_and_more_decoding_read_again(data_root, check, kept, read):
    check(data_root, kept=kept, decode_videos=False)
    for changes in ({"resolution": 32}, {"music_feature_fps": 12.0}, {}):
        check(data_root, kept=kept, decode_videos=bool(changes) is False, **changes)
    assert len(read) == 8
    check(data_root, kept=kept, decode_videos=False)  # all frames are more than two
    (data_root / "music_features" / "meta.json").write_text('{"fps": 12}')
    check(data_root, kept=kept)
    assert len(read) == 10


def test_what_was_found_is_found_again(data_root, check, kept, read):
    (data_root / "poses" / "dance_001" / "frame_002.json").write_text("{")
    (data_root / "poses" / "dance_002" / "notes.txt").touch()
    (data_root / "videos" / "dance_002.mp4").write_bytes(b"no video")
    first, again = check(data_root, kept=kept), check(data_root, kept=kept)
    assert len(read) == 2 and len(first.faults) == 2 and first.num_unread == 1
    assert vars(again) == vars(first)


def test_a_check_that_is_stopped_goes_on(data_root, check, kept, read, monkeypatch):
    monkeypatch.setattr(folder_check, "SAMPLES_AT_ONCE", 1)
    with monkeypatch.context() as patched:
        patched.setattr(
            folder_check,
            "check_sample",
            lambda *_: read.append("") or check_sample(*_) if not read else 1 / 0,
        )
        with pytest.raises(ZeroDivisionError):
            check(data_root, kept=kept)
    check(data_root, kept=kept)
    assert read[1:] == ["dance_002"]


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_file_is_made_again(data_root, check, kept, read, content):
    kept.path.parent.mkdir()
    kept.path.write_bytes(content)
    for _ in range(2):
        assert check(data_root, kept=kept).ok
    assert len(read) == 2


def test_where_nothing_can_be_kept_all_is_read(data_root, check, tmp_path, read):
    (tmp_path / "out").write_text("a file")
    for _ in range(2):
        assert check(data_root, kept=KeptFacts(tmp_path / "out" / "data_facts.sqlite")).ok
    assert len(read) == 4


def test_a_drive_that_answers_late_is_asked_by_threads(data_root, settings, monkeypatch):
    folder = list_data_folder(data_root, settings["guidance_types"])
    alone = looks.sample_looks(folder, b"base")
    monkeypatch.setattr(looks, "SLOW_SECONDS", -1)
    monkeypatch.setattr(looks, "PART", 1)
    assert looks.sample_looks(folder, b"base") == alone and len(set(alone)) == 2


# -- What clips and statistics are read from


def test_a_dataset_reads_the_kept_frame_tables_and_statistics(data_root, check, kept, make, monkeypatch):
    check(data_root, kept=kept)
    fresh = make(data_root)
    expected, statistics = [fresh[index] for index in range(2)], fresh.feature_statistics()
    with monkeypatch.context() as patched:
        patched.setattr(video, "read_frame_table", None)
        patched.setattr(type(fresh), "_rows", None)
        assert_same(make(data_root, kept=kept).feature_statistics(), statistics)
    with monkeypatch.context() as patched:
        patched.setattr(video, "read_frame_table", None)
        dataset = make(data_root, kept=kept)
        for index, item in enumerate(expected):
            found = dataset[index]
            assert found["frames"].equal(item["frames"])
            assert found["frame_seconds"].equal(item["frame_seconds"])
            assert dataset.frame_seconds(index).flags.writeable


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys() == {"music"}
    assert all(one.equal(other) for one, other in zip(found["music"], expected["music"], strict=True))


def test_what_changed_since_the_check_is_read(data_root, check, kept, make):
    check(data_root, kept=kept)
    write_video(data_root / "videos" / "dance_001.mp4", np.full((20, 64, 64, 3), 9, np.uint8), 12)
    np.save(data_root / "music_features" / "dance_002" / "frame_000.npy", np.full(5, 7.0, np.float32))
    dataset = make(data_root, kept=kept)
    assert dataset.num_frames(0) == 20 and dataset.num_frames(1) == 24
    assert_same(dataset.feature_statistics(), make(data_root).feature_statistics())
