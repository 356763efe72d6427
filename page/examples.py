"""Ready examples: samples of a data folder, whose poses and music features are there already."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import VideoReader
from datasets.data_folder import DataFolder, Sample, list_data_folder
from datasets.transforms import Size
from system.errors import UserError

MOST_EXAMPLES = 6


@dataclass(frozen=True)
class Example:
    """One sample: its image, its video with sound, and its tracks {guidance type: path}."""

    name: str
    image: Path
    video: Path
    tracks: dict[str, Path]
    seconds: float
    size: Size  # of the video


def find_examples(data_dir: Path, guidance_types: Sequence[str]) -> list[Example]:
    """Return the first whole samples of a data folder. Raises DataError where it is none."""
    types = [name for name in ("pose", "music") if name in guidance_types]
    folder, examples = list_data_folder(data_dir, types), []
    for sample in folder.samples[: 4 * MOST_EXAMPLES]:
        try:
            examples.append(_example(folder, sample))
        except UserError:  # not whole: the report of the data says why
            continue
        if len(examples) == MOST_EXAMPLES:
            break
    return examples


def _example(folder: DataFolder, sample: Sample) -> Example:
    video = sample.video_path()
    reader = VideoReader(video)
    tracks = {name: folder.track(sample, name).path for name in sample.guidance_names}
    seconds = float(reader.frame_seconds[-1] - reader.frame_seconds[0] + 1 / reader.frame_rate)
    return Example(sample.sample_id, sample.reference_path(), video, tracks, seconds, reader.size)
