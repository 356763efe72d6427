"""Videos and music opened by PyAV, whatever bytes their titles are made of."""

from pathlib import Path

import av
from av.container import InputContainer

from system.whole_files import check_ordinary

# PyAV 19 takes any bytes by itself and no longer knows the option.
OPTIONS = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "replace"}


def open_container(path: Path) -> InputContainer:
    """Open a file for reading. Raises av.FFmpegError, OSError or DataError."""
    check_ordinary(path)
    return av.open(str(path), **OPTIONS)
