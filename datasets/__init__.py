"""Training data: videos, guidance and reference images as batches of clips."""


class Dataset:
    """Stands in for the class of this name in Hugging Face's `datasets`, which accelerate imports by it."""


class IterableDataset:
    """As above: accelerate takes whichever `datasets` is first on the path and wants both names in it."""


from system.errors import DataError  # noqa: E402

from .checking.data_report import DataReport, Fault, read_report  # noqa: E402
from .checking.folder_check import check_data  # noqa: E402
from .dance_dataset import DanceDataset  # noqa: E402
from .guidance.kind import GuidanceKind, register_guidance_kind  # noqa: E402
from .guidance.tracks import read_music, read_pose_folder  # noqa: E402
from .guidance_dataset import GuidanceDataset, collate_clips  # noqa: E402
from .media.video import VideoReader  # noqa: E402
from .media.video_writing import write_video  # noqa: E402
from .report.page import write_report_page  # noqa: E402

__all__ = [
    "DanceDataset",
    "DataError",
    "DataReport",
    "Dataset",
    "Fault",
    "GuidanceDataset",
    "GuidanceKind",
    "IterableDataset",
    "VideoReader",
    "check_data",
    "collate_clips",
    "read_music",
    "read_pose_folder",
    "read_report",
    "register_guidance_kind",
    "write_report_page",
    "write_video",
]
