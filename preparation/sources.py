"""The user's raw material: the videos of a folder, and the sound that belongs to each."""

import contextlib
import hashlib
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import av

from datasets import DataError
from datasets.data_folder import VIDEO_SUFFIXES
from datasets.media.containers import open_container
from system.file_names import long_path_problem, windows_problem

AUDIO_SUFFIXES = (".wav", ".mp3", ".m4a", ".flac", ".ogg")
SOUND_FIX = f"put a sound file of the same name beside it ({' '.join(AUDIO_SUFFIXES)}), or give --music_file"


@dataclass(frozen=True)
class Source:
    """One raw video. sound_path: a file with its sound, other than the video itself."""

    path: Path
    name: str  # of its sample, or the beginning of its samples' names
    sound_path: Path | None = None
    is_sound_forced: bool = False  # by --music_file; else the video's own sound comes first


def list_sources(input_dir: Path, music_file: Path | None) -> tuple[list[Source], list[DataError]]:
    """Return (a folder's videos by name, faults of single ones). Raises DataError where none is there."""
    if not input_dir.is_dir():
        problem = "is a file" if input_dir.exists() else "no such folder"
        raise DataError(input_dir, problem, "give the folder that holds the videos as --input_dir")
    entries = sorted(path for path in input_dir.iterdir() if not path.name.startswith("."))
    videos = [path for path in entries if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        deeper = (path for path in sorted(input_dir.rglob("*")) if path.suffix.lower() in VIDEO_SUFFIXES)
        otherwise = f"put videos there ({' '.join(VIDEO_SUFFIXES)})"
        fix = next((f"give --input_dir {path.parent}" for path in deeper), otherwise)
        raise DataError(input_dir, "no videos in it", fix)
    if music_file is not None and len(videos) > 1:
        problem = f"--music_file is for one video, there are {len(videos)}"
        raise DataError(input_dir, problem, "put sound files of the videos' names beside them instead")
    if music_file is not None and not music_file.is_file():
        raise DataError(music_file, "no such sound file", "check the path of --music_file")
    sounds = {_name(path): path for path in reversed(entries) if path.suffix.lower() in AUDIO_SUFFIXES}
    sources, faults, taken = [], [], {}
    for path in videos:
        name = _name(path)
        if not _is_text(name):
            problem = "has a name that is no text: its bytes are not UTF-8"
            faults.append(DataError(path, problem, "rename it: samples are named after their videos"))
        elif name in taken:
            faults.append(DataError(path, f"has the same name as {taken[name].name}", "rename one of them"))
        else:
            taken[name] = path
            sources.append(Source(path, name, music_file or sounds.get(name), music_file is not None))
    return sources, faults


def refused_by_windows(sources: list[Source], output_dir: Path) -> tuple[list[Source], list[DataError]]:
    """Return (the sources whose samples Windows can hold, faults of the others)."""
    kept, faults = [], []
    for source in sources:
        if problem := windows_problem(source.name):
            faults.append(DataError(source.path, problem, "rename it"))
        elif problem := long_path_problem(source.name, output_dir):
            fix = "rename it, or choose an --output_dir with a shorter path"
            faults.append(DataError(source.path, problem, fix))
        else:
            kept.append(source)
    return kept, faults


def _name(path: Path) -> str:
    """Return a file's stem, composed: macOS decomposes accents and Korean."""
    return unicodedata.normalize("NFC", path.stem)


def _is_text(name: str) -> bool:
    """Return False where Python stands in for bytes of another encoding, which no JSON or page can hold."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def estimate_frames(path: Path) -> int:
    """Return about how many frames a video has, by its header; 0 where it does not say or is unreadable."""
    with contextlib.suppress(av.FFmpegError, OSError, IndexError, ValueError):
        with open_container(path) as container:
            stream = container.streams.video[0]
            if stream.frames:
                return stream.frames
            seconds = (container.duration or 0) / av.time_base
            return round(seconds * float(stream.average_rate or 0))
    return 0


def describe_file(path: Path) -> dict:
    """Return a file as it is remembered in a sample's metadata."""
    status = path.stat()
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "size": status.st_size, "modified_ns": status.st_mtime_ns, "sha256": digest}


def is_same_file(path: Path, remembered: dict) -> bool:
    """Return whether a file has the content it had; it is read only where its time is another."""
    status = path.stat()
    if status.st_size != remembered.get("size"):
        return False
    if status.st_mtime_ns == remembered.get("modified_ns"):
        return True
    return describe_file(path)["sha256"] == remembered.get("sha256")
