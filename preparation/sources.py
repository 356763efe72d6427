"""The user's raw material: the videos of a folder, and the sound that belongs to each."""

import contextlib
import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av

from datasets import DataError
from datasets.data_folder import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from datasets.media.containers import main_video, open_container
from datasets.unread import FOLDER, HIDDEN, NO_ENDING, Unread, is_hidden
from system.file_names import long_path_problem, windows_problem

AUDIO_SUFFIXES = (".wav", ".mp3", ".m4a", ".flac", ".ogg", ".aac", ".opus", ".aif", ".aiff", ".wma", ".mka")
FILM_ENDINGS = {
    "mp4": ".mp4",
    "matroska": ".mkv",
    "avi": ".avi",
    "mpegts": ".ts",
    "mpeg": ".mpg",
    "asf": ".wmv",
    "flv": ".flv",
    "ogg": ".ogv",
}  # by FFmpeg's names of formats
# Not opened to see whether they are films: photos in a film's container, and what lies beside each video.
NO_FILM_SUFFIXES = (
    ".heic",
    ".heif",
    ".avif",
    *IMAGE_SUFFIXES,
    ".txt",
    ".json",
    ".csv",
    ".srt",
    ".vtt",
    ".npy",
)
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
    entries = sorted(path for path in input_dir.iterdir() if not is_hidden(path.name))
    videos = [path for path in entries if path.suffix.lower() in VIDEO_SUFFIXES]
    if not videos:
        otherwise = f"put videos there ({' '.join(VIDEO_SUFFIXES)})"
        fix = next((f"give --input_dir {path.parent}" for path in _videos_below(input_dir)), otherwise)
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
        if not path.exists():
            fix = "remove it, or bring back the file that it leads to"
            faults.append(DataError(path, "is a link that leads nowhere", fix))
        elif path.is_file() and path.stat().st_size == 0:
            faults.append(DataError(path, "is empty, 0 bytes", "copy it again, or remove it"))
        elif not _is_text(name):
            problem = "has a name that is no text: its bytes are not UTF-8"
            faults.append(DataError(path, problem, "rename it: samples are named after their videos"))
        elif name in taken:
            faults.append(DataError(path, f"has the same name as {taken[name].name}", "rename one of them"))
        else:
            taken[name] = path
            sources.append(Source(path, name, music_file or sounds.get(name), music_file is not None))
    return sources, faults


def list_unread(
    input_dir: Path, sources: list[Source], faults: list[DataError], output_dir: Path
) -> list[Unread]:
    """Return what lies in the folder and is not taken, beside the videos that a fault names."""
    known = {source.path for source in sources} | {source.sound_path for source in sources}
    known |= {Path(fault.path) for fault in faults}
    left = [path for path in sorted(input_dir.iterdir()) if path not in known]
    names = {source.name for source in sources}
    left = [path for path in left if not _is_same_folder(path, output_dir)]
    return [Unread(path, _why_not(path, names, output_dir)) for path in left]


def _is_same_folder(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def _videos_below(folder: Path, output_dir: Path | None = None) -> Iterator[Path]:
    """Yield the videos of a folder at any depth, but for those in a system's folders and in output_dir.

    A NAS keeps a folder for each video in its @eaDir, of the video's name.
    """
    for parent, folders, names in os.walk(folder):
        below = (Path(parent, name) for name in sorted(folders) if not is_hidden(name))
        folders[:] = [
            path.name for path in below if output_dir is None or not _is_same_folder(path, output_dir)
        ]
        videos = (Path(parent, name) for name in sorted(names) if not is_hidden(name))
        yield from (path for path in videos if path.suffix.lower() in VIDEO_SUFFIXES)


def _why_not(path: Path, video_names: set[str], output_dir: Path) -> str:
    if is_hidden(path.name):
        return HIDDEN
    if path.is_dir():
        folders = Counter(video.parent for video in _videos_below(path, output_dir))
        if not folders:
            return FOLDER
        number = f"{folders.total()} video{'s' * (folders.total() != 1)}"
        first, here = next(iter(folders.items()))
        some = "" if here == folders.total() else f"{here} of "
        return f"{FOLDER}; for {some}its {number} give --input_dir {first}"
    if path.suffix.lower() in AUDIO_SUFFIXES:
        other = (
            "other sound is taken for its video" if _name(path) in video_names else "no video has its name"
        )
        return f"is not heard: {other}"
    ending = _film_ending(path)
    return f"{NO_ENDING}; it holds a video, give it the ending {ending}" if ending else NO_ENDING


def _film_ending(path: Path) -> str | None:
    """Return the ending that a video of no known one should have; texts and images are videos to FFmpeg."""
    if path.suffix.lower() in NO_FILM_SUFFIXES or not path.is_file():
        return None
    with contextlib.suppress(av.FFmpegError, OSError, ValueError):
        with open_container(path) as container:
            names = container.format.name.split(",")
            endings = [FILM_ENDINGS[name] for name in names if name in FILM_ENDINGS]
            return endings[0] if endings and main_video(container) is not None else None
    return None


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
    with contextlib.suppress(av.FFmpegError, OSError, AttributeError, ValueError):
        with open_container(path) as container:
            stream = main_video(container)
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
