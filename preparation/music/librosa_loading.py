"""librosa, whose functions numba compiles for this machine: once, by one process, in a folder of our own.

Two processes that fill numba's folder at the same time may leave it with functions of both, and then every
process that takes them from there dies of a segmentation fault, in later runs too (numba/numba#10128).
"""

import functools
import os
import tempfile
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from system.errors import ConfigError

COMPILED_FOLDER = "champ_guidance_librosa"


@functools.cache
def load_librosa() -> ModuleType:
    """Return the module. Half a minute at first, while other processes wait; then a few seconds.

    NUMBA_CACHE_DIR, where it is set, is the folder. Raises ConfigError when it cannot be written.
    """
    import numba

    folder = Path(numba.config.CACHE_DIR or _own_folder())
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        problem = f"NUMBA_CACHE_DIR={folder} cannot be written ({error.strerror})"
        raise ConfigError(f"{problem}; set it to a folder that can be, or unset it") from error
    numba.config.CACHE_DIR = str(folder)
    with lock:
        import librosa
        import librosa.beat
        import librosa.feature  # what has types given is compiled by the import
        import librosa.onset

    return librosa


def _own_folder() -> Path:
    """Return a folder in the user's cache; where that cannot be written, beside temporary files."""
    from platformdirs import user_cache_path

    folder = user_cache_path(COMPILED_FOLDER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        user = (
            os.getuid() if hasattr(os, "getuid") else ""
        )  # Windows has a folder of temporary files per user
        folder = Path(tempfile.gettempdir()) / f"{COMPILED_FOLDER}_{user}"
    return folder
