"""What may be uploaded: files are told by how they begin, not by their names."""

import wave

import numpy as np
import pytest
from PIL import Image

from datasets import DataError, write_video
from page.uploads import check_upload, first_bytes, hide_folders

LARGE = 10**6
PLAYLIST = b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n"
MANIFEST = b'<MPD profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"></MPD>'
CONCAT = b"ffconcat version 1.0\nfile /etc/passwd\n"


def tag(size: int) -> bytes:
    """Return the head of a song's tag with `size` bytes of titles."""
    return b"ID3\x04\0\0" + bytes([0, 0, size >> 7, size & 0x7F]) + b"\0" * size


@pytest.fixture
def files(tmp_path):
    Image.new("RGB", (8, 6), "teal").save(tmp_path / "image.png")
    write_video(tmp_path / "video.mp4", np.zeros((3, 16, 16, 3), np.uint8), 8)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(8000))
    return tmp_path


@pytest.mark.parametrize(
    "name, kind", [("image.png", "image"), ("video.mp4", "video"), ("sound.wav", "song")]
)
def test_files_of_their_kind_are_taken_up_to_the_limit(files, name, kind):
    path = files / name
    size = path.stat().st_size
    check_upload(path, kind, size)
    with pytest.raises(DataError, match=f"{name}: has .* MB are taken"):
        check_upload(path, kind, size - 1)


@pytest.mark.parametrize(
    "name, kind", [("video.mp4", "image"), ("image.png", "video"), ("image.png", "song")]
)
def test_files_of_another_kind_are_refused(files, name, kind):
    with pytest.raises(DataError, match=f"{name}: is not an? .*give an? "):
        check_upload(files / name, kind, LARGE)


@pytest.mark.parametrize("text", [PLAYLIST, MANIFEST, CONCAT, b"", b"<!--ftyp-->" + MANIFEST, b"v=0\r\n"])
@pytest.mark.parametrize("before", [b"", tag(300), b"<!--G -->", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("kind", ["image", "video", "song"])
def test_texts_are_refused_whatever_they_are_called(tmp_path, monkeypatch, text, before, kind):
    """Lists of other files and addresses, which FFmpeg would follow; nothing opens them."""
    for name in ("VideoReader", "read_audio", "read_picture"):
        monkeypatch.setattr(f"page.uploads.{name}", lambda *_: pytest.fail("it is opened"))
    path = tmp_path / "dance.mp4"
    path.write_bytes(before + text)
    with pytest.raises(DataError, match="whatever its name says"):
        check_upload(path, kind, LARGE)


def test_damaged_and_large_files_are_refused(files):
    video = files / "video.mp4"
    with pytest.raises(DataError, match=r"video.mp4: has 0\.0 MB, at most .* MB are taken"):
        check_upload(video, "video", 100)
    video.write_bytes(video.read_bytes()[:200])
    with pytest.raises(DataError, match="video.mp4"):
        check_upload(video, "video", LARGE)


def test_what_follows_a_tag_counts(tmp_path):
    path = tmp_path / "song.mp3"
    path.write_bytes(tag(5000) + b"\0\0\xff\xfb")
    assert first_bytes(path).startswith(b"\xff\xfb")


def test_messages_name_files_alone(tmp_path):
    folder = tmp_path / "abc"
    assert hide_folders(f"{folder}/my dance.mp4: is silent", tmp_path) == "my dance.mp4: is silent"
    assert hide_folders(f"--song {tmp_path}/a.mp3: no", tmp_path) == "--song a.mp3: no"
