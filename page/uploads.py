"""Uploaded files: told by their first bytes before anything opens them.

A name says nothing: a text file named .mp4 may be a list of other files and addresses, which readers of
videos follow. Nothing that passes here is a text.
"""

import re
from pathlib import Path

from datasets import VideoReader
from datasets.media.pictures import read_picture
from datasets.media.sound import read_audio
from system.errors import DataError

SIGNATURES = {
    # HEIC cannot be read, but has a message of its own.
    "image": rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|\x00...ftyp(hei|hev|mif|msf)",
    "video": rb"\x00...(ftyp|moov|wide|free|skip|mdat)|[\x01-\x08]...mdat"  # mp4, mov
    rb"|\x1a\x45\xdf\xa3|RIFF....AVI |\x00\x00\x01[\xba\xb3]|FLV\x01|OggS|\x30\x26\xb2\x75\x8e\x66\xcf\x11"
    # Transport streams, those of cameras with a time stamp before each packet.
    rb"|\x47.{187}\x47.{187}\x47|[\x00-\x08\x80-\xff].{3}\x47.{191}\x47.{191}\x47",
    "sound": rb"\xff[\xe2-\xff]|RIFF....WAVE|fLaC|OggS|FORM....AIF",
}
PATTERNS = {kind: re.compile(signature, re.DOTALL) for kind, signature in SIGNATURES.items()}
EXPECTED = {
    "image": ("an image", "give a jpg, png or webp file"),
    "video": ("a video", "give an mp4, mov, webm, mkv or avi file"),
    "song": ("a song", "give an mp3, wav, flac, ogg or m4a file"),
}
HEAD_BYTES = 4096


def check_upload(path: Path, kind: str, max_bytes: int) -> None:
    """Raise DataError unless a file is of its kind ("image", "video", "song"), readable, not too large."""
    what, fix = EXPECTED[kind]
    if (size := path.stat().st_size) > max_bytes:
        problem = f"has {size / 2**20:.1f} MB, at most {max_bytes / 2**20:.3g} MB are taken"
        raise DataError(path, problem, "give a smaller file")
    head = first_bytes(path)
    kinds = ("video", "sound") if kind == "song" else (kind,)
    if not any(PATTERNS[one].match(head) for one in kinds):
        raise DataError(path, f"is not {what}, whatever its name says", fix)
    if kind == "image":
        read_picture(path)
    elif kind == "video":
        VideoReader(path)
    else:
        read_audio(path, 0.0, 0.1)


def first_bytes(path: Path) -> bytes:
    """Return how a file begins, after the tag of title and artist that songs begin with."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
        if head.startswith(b"ID3") and len(head) > 10:
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            file.seek(10 + size)
            head = file.read(HEAD_BYTES).lstrip(b"\0")
    return head


def hide_folders(text: str, root: Path) -> str:
    """Return a message with the names of files alone, where it names the page's own folders."""
    return re.sub(rf"{re.escape(str(root))}/?(\S*/)?", "", text.replace("\\", "/"))
