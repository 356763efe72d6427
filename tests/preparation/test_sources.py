"""What of a raw folder is not taken, and what is advised."""

import pytest

from datasets import DataError
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
