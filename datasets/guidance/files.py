"""JSON and .npy files of guidance and metadata; a file that cannot be read is a DataError that names it."""

import io
import json
import math
import os
from pathlib import Path

import numpy as np

from datasets import packed_files
from system.errors import DataError, RunError
from system.whole_files import check_ordinary


def load_json(path: Path):
    """Return the content of a JSON file. Raises DataError."""
    try:
        if packed_files.is_packed(path):
            return json.loads(packed_files.read_bytes(path))
        with open(path, "rb", opener=_open_at_once) as file:
            return json.loads(file.read())
    except DataError:  # of the shard that it lies in
        raise
    except OSError as error:
        raise DataError(path, f"cannot be read ({error.strerror})", "restore the file") from error
    except UnicodeDecodeError as error:
        problem = f"is not text in UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x})"
        raise DataError(path, problem, "save it as UTF-8") from error
    except ValueError as error:
        check_ordinary(path)
        problem = "is empty" if packed_files.size_of(path) == 0 else f"is not valid JSON ({error})"
        raise DataError(path, problem, "write it again") from error


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; a named pipe too, which otherwise waits for its other end, for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def load_array(path: Path, *, mapped: bool = False) -> np.ndarray:
    """Return the array of a .npy file, of any real number type; never pickled objects. Raises DataError."""
    check_ordinary(path)
    try:
        load = _load_packed if packed_files.is_packed(path) else np.load
        array = load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except (DataError, RunError):  # of the shard that it lies in
        raise
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


def _load_packed(path: Path, mmap_mode: str | None, *, allow_pickle: bool) -> np.ndarray:
    """Return the array of a packed file as numpy.load does: a map of it begins in the middle of a file."""
    with packed_files.open_packed(path) as file:
        if mmap_mode is None:
            return np.load(io.BytesIO(file.read()), allow_pickle=allow_pickle)
        version = np.lib.format.read_magic(file)
        read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_{version[1]}")
        shape, is_fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("Python objects")
        place, end = file.tell(), file.part.size
        if place + dtype.itemsize * math.prod(shape) > end:
            raise ValueError(f"{end} bytes")
        order = "F" if is_fortran else "C"
        return np.memmap(file.whole, dtype, mmap_mode, file.part.offset + place, shape, order)
