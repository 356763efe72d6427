"""A named pipe in a data folder waits for its other end, for ever, unless it is a fault of its own."""

import faulthandler
import os
import shutil

import pytest

from datasets import check_data, write_report_page
from datasets.media.containers import open_container
from system.errors import DataError

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
PLACES = [
    "videos/dance_001.mp4", "poses/dance_001/frame_003.json", "music_features/dance_001/frame_003.npy",
    "reference_images/dance_001.png", "poses/meta.json", "metadata/dance_001.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def one_video(tmp_path_factory, write_data):
    return write_data(tmp_path_factory.mktemp("piped"), 1)


@pytest.mark.parametrize("place", PLACES)
def test_it_is_named_or_passed_over(place, one_video, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(one_video, root)
    (root / "metadata").mkdir(exist_ok=True)
    (root / place).unlink(missing_ok=True)
    os.mkfifo(root / place)
    faulthandler.dump_traceback_later(60, exit=True)  # it waits
    try:
        report = check_data(root, ["music", "pose"], [35, 134], sequence_length=2, num_workers=0)
        write_report_page(report, tmp_path / "page.html", num_workers=0)
    finally:
        faulthandler.cancel_dump_traceback_later()
    is_optional = place.startswith("metadata") or place.endswith("meta.json")
    found = [fault for fault in report.errors if "is a named pipe" in fault.problem]
    assert [fault.path for fault in found] == ([] if is_optional else [str(root / place)])


def test_raw_material_too(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(DataError, match="is a named pipe, a socket or a device, not an ordinary file"):
        open_container(tmp_path / "a.mp4")
