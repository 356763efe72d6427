"""What of a source is prepared already, told by the metadata of its samples; nothing is decoded for it."""

from __future__ import annotations

from pathlib import Path

from datasets import DataError

from .sample_folder import SampleFolder
from .settings import Settings
from .sources import Source, is_same_file

UNSTATED = {"pose_format": "json"}  # settings that samples of earlier versions do not state


def piece_name(source_name: str, piece: int, num_pieces: int) -> str:
    """The sample's name: a video in one piece keeps its own."""
    return source_name if num_pieces == 1 else f"{source_name}_{piece:03d}"


def finished_pieces(source: Source, settings: Settings, output_dir: Path) -> tuple[set[str], int | None]:
    """(names of the source's finished samples, how many there are to be, if one is finished).

    Raises DataError when a sample of that name was made from another source, or with other settings.
    """
    finished, num_pieces = set(), None
    first_names = (source.name, piece_name(source.name, 0, 2))
    for name in first_names:
        sample = SampleFolder(output_dir, name, settings.pose_format)
        metadata = _matching_metadata(sample, source, settings, is_own=name == source.name)
        if metadata is not None:
            num_pieces = metadata["num_pieces"]
    for piece in range(num_pieces or 0):
        name = piece_name(source.name, piece, num_pieces)
        if is_finished(source, settings, output_dir, name):
            finished.add(name)
    return finished, num_pieces


def is_finished(source: Source, settings: Settings, output_dir: Path, name: str) -> bool:
    """Whether a piece of the source is finished, also where its first piece is not. Raises as above."""
    sample = SampleFolder(output_dir, name, settings.pose_format)
    return _matching_metadata(sample, source, settings) is not None


def _matching_metadata(
    sample: SampleFolder, source: Source, settings: Settings, *, is_own: bool = True
) -> dict | None:
    """The metadata of a finished sample; None where it is not there.

    is_own: whether a sample of this name can only be this source's; dance_000 may be that of dance_000.mp4.
    """
    metadata = sample.read_metadata()
    if metadata is None:
        return None
    made_from = metadata.get("source")
    if not isinstance(made_from, dict) or "num_pieces" not in metadata:
        raise _stale(sample, "was not made by prepare_guidance.py")
    if made_from.get("file") != source.path.name:
        if not is_own:
            return None
        found = made_from.get("file")
        raise _stale(sample, f"was made from another video ({found!r}, not {source.path.name!r})")
    if not is_same_file(source.path, made_from):
        raise _stale(sample, f"was made from an earlier {source.path.name}, which has changed since")
    if source.sound_path is not None and metadata.get("sound") is not None:
        if not is_same_file(source.sound_path, metadata["sound"]):
            raise _stale(sample, f"was made with another sound than {source.sound_path.name} is now")
    was, now = UNSTATED | metadata.get("settings", {}), settings.fingerprint()
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            raise _stale(sample, f"was made with {key} {was.get(key)}, not {now.get(key)}")
    if source.is_sound_forced and metadata.get("sound") is None:
        raise _stale(sample, f"was made with the video's own sound, not with {source.sound_path.name}")
    missing = next((path for path in sample.paths if not path.exists()), None)
    if missing is not None:
        problem = f"is missing, though sample {sample.name!r} was finished"
        raise DataError(
            missing, problem, "restore it, or remove the rest of the sample to have it made again"
        )
    return metadata


def _stale(sample: SampleFolder, problem: str) -> DataError:
    parts = "videos, poses, music_features, reference_images and metadata"
    fix = f"choose another --output_dir, or remove {sample.name!r} from its {parts}"
    return DataError(sample.metadata_path, f"this sample {problem}", fix)
