"""What of a raw folder is not taken, and what is advised."""

import pytest

from datasets import DataError
from datasets.unread import unread_lines
from preparation import sources
from preparation.sources import list_sources, list_unread


def test_advice_leads_to_videos_and_not_to_what_others_made_of_them(tmp_path):
    """A NAS's own folders, one of them named like the video, and the samples of an earlier run."""
    raw, output = tmp_path / "raw", tmp_path / "raw" / "work" / "data"
    for path in ("day/@eaDir/a.mp4/thumb.jpg", "day/@eaDir/b.mp4", "day/new/a.mp4", "day/new/b.mp4",
                 "day/old/c.mp4", "work/data/videos/a.mp4"):  # fmt: skip
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        (raw / path).touch()
    reasons = {one.path.name: one.reason for one in list_unread(raw, [], [], output)}
    advice = f"for 2 of its 3 videos give --input_dir {raw / 'day' / 'new'}"
    folder = "is a folder, and not looked into"
    assert reasons == {"day": f"{folder}; {advice}", "work": folder}
    with pytest.raises(DataError, match="no videos in it") as caught:
        list_sources(raw / "day", None)
    assert caught.value.fix == f"give --input_dir {raw / 'day' / 'new'}"


def test_what_lies_beside_each_video_is_not_opened(tmp_path, monkeypatch):
    for name in ("a.info.json", "a.JPG", "a.vtt", "a.unknown"):
        (tmp_path / name).write_bytes(b"some words\n")
    opened, open_container = [], sources.open_container
    monkeypatch.setattr(sources, "open_container", lambda path: opened.append(path) or open_container(path))
    assert {one.reason for one in list_unread(tmp_path, [], [], tmp_path / "data")} == {
        "is not read: no known ending"
    }
    assert [path.name for path in opened] == ["a.unknown"]


def test_of_many_folders_of_videos_the_first_have_a_line_each(tmp_path):
    for number in range(30):
        (tmp_path / f"day {number:02d}").mkdir()
        (tmp_path / f"day {number:02d}" / "a.mp4").touch()
    (tmp_path / "notes.txt").touch()
    *each, notes, rest = unread_lines(list_unread(tmp_path, [], [], tmp_path / "data"), tmp_path)
    folder = "a folder, and not looked into"
    assert each == [
        f"{path} is {folder}; for its 1 video give --input_dir {path}"
        for path in (tmp_path / f"day {number:02d}" for number in range(5))
    ]
    assert notes == f"{tmp_path / 'notes.txt'} is not read: no known ending"
    assert rest.startswith(f"25 entries of {tmp_path} are {folder}: day 05, ") and rest.endswith("20 more")
