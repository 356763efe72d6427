"""JSON and .npy files of guidance and metadata; a file that cannot be read is a DataError that names it."""

import json
import os
from pathlib import Path

import numpy as np

from system.errors import DataError
from system.whole_files import check_ordinary


def load_json(path: Path):
    """Return the content of a JSON file. Raises DataError."""
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            return json.loads(file.read())
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", "restore the file") from error
    except UnicodeDecodeError as error:
        problem = f"is not text in UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x})"
        raise DataError(path, problem, "save it as UTF-8") from error
    except ValueError as error:
        check_ordinary(path)
        problem = "is empty" if path.stat().st_size == 0 else f"is not valid JSON ({error})"
        raise DataError(path, problem, "write it again") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a named pipe too, which otherwise waits for its other end, for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Return the array of a .npy file, of any real number type; never pickled objects. Raises DataError."""
    check_ordinary(path)
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except OSError as error:
        raise DataError(path, f"cannot be read ({error})", "restore the file") from error
    except Exception as error:  # a damaged header is parsed as Python, and fails as whatever it then is
        pickled = "pickle" in str(error).lower() or "Python objects" in str(error)
        problem = "holds pickled objects or no array" if pickled else f"is not a whole .npy file ({error})"
        raise DataError(path, problem, "save a plain number array with numpy.save") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        found = getattr(array, "dtype", "an npz archive")
        raise DataError(path, f"numbers expected, found {found}", "save a float32 array with numpy.save")
    if mapped and (array.ndim < 1 or len(array) == 0):
        raise DataError(path, f"no rows, its shape is {array.shape}", "save one row per frame")
    return array
