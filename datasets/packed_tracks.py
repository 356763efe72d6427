"""Poses as one NumPy file per video, which large folders use, made of a JSON file per frame.

Their values are the same to the bit. The JSON files move to a folder beside poses/: a sample has one track.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from system.errors import DataError
from system.processes import map_in_processes
from system.whole_files import rename, whole_file

from .data_folder import DataFolder, Sample, list_data_folder, type_dir
from .guidance.files import load_array
from .guidance.key_point_check import decide_units, normalize_key_points
from .guidance.track import META_NAME, Track
from .guidance.tracks import find_track, stated_in
from .media.video import VideoReader
from .takes import stated_frame
from .transforms import Size

ORIGINALS = "_json"  # after the name of the folder of poses
SIZE_FIX = "give the size of the frame in metadata/NAME.json, or leave these poses as they are"


def packed_poses(
    data_root: str | Path, num_points: int, *, num_workers: int | None = None
) -> tuple[int, list[str]]:
    """Pack the poses of a data folder; return how many tracks were packed, and what is wrong with others.

    What is packed already is passed over, so that what was stopped goes on. Raises DataError for no poses.
    """
    folder = list_data_folder(data_root, ["pose"], needs_videos=False)
    samples = [sample for sample in folder.samples if _json_folder(sample) is not None]
    packing = _Packing(dataclasses.replace(folder, samples=[], unread=[]), num_points)
    problems = map_in_processes(
        packing, samples, num_workers=num_workers, title="packing poses", crashed=_crashed
    )
    found = [problem for problem in problems if problem is not None]
    return len(problems) - len(found), found


def _crashed(sample: Sample) -> str:
    return f"{sample.sample_id}: the process that packed it died; run the command again"


def _json_folder(sample: Sample) -> Path | None:
    """Return the folder of a sample's poses; None where they are in one file."""
    poses = type_dir(sample.root, "pose")
    return next((poses / name for name in sample.guidance_names["pose"] if (poses / name).is_dir()), None)


@dataclasses.dataclass(frozen=True)
class _Packing:
    """Packs one sample; returns a line where it cannot."""

    folder: DataFolder
    num_points: int

    def __call__(self, sample: Sample) -> str | None:
        try:
            self.pack(sample, _json_folder(sample))
        except DataError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or sample.sample_id}: {error.strerror or error}; it is left as it was"
        return None

    def pack(self, sample: Sample, source: Path) -> None:
        """Write NAME.npy, then move the folder NAME: stopped in between, a sample has both until then."""
        target, originals = source.with_name(f"{source.name}.npy"), originals_dir(source.parent)
        if (originals / source.name).exists():
            problem = f"{originals.name}/{source.name} is there already"
            raise DataError(originals / source.name, problem, "move it away, or remove it")
        track = find_track("pose", source.parent, sample.sample_id, names=[source.name])
        content = self.content(sample, track)
        if target.exists():
            if not np.array_equal(load_array(target), content):
                fix = "keep one"
                raise DataError(target, f"there is also a folder of other poses, {source.name}", fix)
        else:
            with whole_file(target) as aside, aside.open("wb") as file:
                np.save(file, content)
        originals.mkdir(exist_ok=True)
        rename(source, originals / source.name)

    def content(self, sample: Sample, track: Track) -> np.ndarray:
        """Return the packed file's array, float32 [N, K, 3], which is read as the JSON files are."""
        read, numbers = track.kind.reader(track, self.num_points), range(track.num_rows)
        rows = [read(number) for number in numbers]
        units, size = track.kind.units(track, lambda asked: [rows[number] for number in asked]), None
        self.check_statements(sample, track)
        if units == "pixel":
            size = self.frame_size(sample, track)
        values = track.kind.values(track, numbers, rows, units, size)
        stated = stated_in(track.path.with_name(META_NAME)).get("coordinates")
        for content in (np.stack([points for points, _ in rows]), values):
            taken = stated or decide_units(track.path, content, set())
            if np.array_equal(normalize_key_points(content, taken, size or (1, 1)), values):
                return content
        problem = f"its files state {units!r}, {META_NAME} beside the folder another unit"
        raise DataError(track.path, problem, "make them agree")

    def check_statements(self, sample: Sample, track: Track) -> None:
        """Raise DataError for what the files state and one file of numbers cannot."""
        own = stated_in(track.path / META_NAME).keys() - {"coordinates"}
        if own:
            problem = f"states {', '.join(sorted(own))} of this track alone, which a packed one cannot"
            raise DataError(track.path / META_NAME, problem, f"state it in the {META_NAME} beside the folder")
        size = track.kind.stated_size(track, ())
        if size is not None and not sample.video_names and self.metadata_size(sample) != tuple(size):
            problem = "its files state the size of the frame, which a packed track cannot"
            fix = f'write it into metadata/{sample.sample_id}.json, as {{"size": [height, width]}}'
            raise DataError(track.path, problem, fix)

    def metadata_size(self, sample: Sample) -> Size | None:
        return stated_frame(self.folder.root, sample.sample_id)[1]

    def frame_size(self, sample: Sample, track: Track) -> Size:
        """Return the (height, width) that points in pixels are of."""
        if sample.video_names:
            return VideoReader(sample.video_path()).size
        size = self.metadata_size(sample)
        if size is None:
            problem = "its key points are in pixels, of a frame of unknown size"
            raise DataError(track.path, problem, SIZE_FIX)
        return size


def originals_dir(poses: Path) -> Path:
    """Return where the JSON files go: beside poses/, on the same drive where that is a link."""
    real = Path(os.path.realpath(poses))
    return real.with_name(real.name + ORIGINALS)
