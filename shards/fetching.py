"""Files of an object store, by fsspec: read whole, and waited for where the store does not answer."""

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from system.errors import ConfigError, DataError
from system.patience import Patience

Result = TypeVar("Result")

BLOCK_BYTES = 2**24  # asked for at once: what a cut connection costs
PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds before another try; the last one from then on
NOTE_SECONDS, MOST_SECONDS = 5.0, 1500.0  # below the time that training waits for a batch
TRY_SECONDS = 120.0  # one try counts for no more: the machine may have slept
STORE_FIX = "see that the store answers, then start again"
REFUSED = {  # by name: botocore is no requirement of this program
    "NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "ProfileNotFound",
    "InvalidRegionError",
}  # fmt: skip

# Never let go of: a data worker that was forked from this process would close its copy of one, and with it
# the connections of this process, which would then wait for an answer in vain.
_file_systems: dict[int, object] = {}


def is_address(data_root: str | Path) -> bool:
    return "://" in str(data_root)


class Store:
    """The files below an address, as s3://bucket/folder."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        if "://" not in self.address:
            raise ConfigError(f"{address}: names no bucket and folder: give an address as s3://BUCKET/SHARDS")

    def __reduce__(self) -> tuple:
        return Store, (self.address,)

    def path_of(self, name: str) -> str:
        return f"{self.address}/{name}"

    def state_of(self, name: str) -> str:
        """Return words that change with a file's content. Raises DataError, RunError."""
        return self._patiently(name, lambda files, path: files.ukey(path))

    def size_of(self, name: str) -> int:
        return self._patiently(name, lambda files, path: files.size(path))

    def fetch(self, name: str, size: int, target: Path) -> None:
        """Write a file of this size to `target`, which is there. Raises DataError, RunError, OSError."""
        with target.open("r+b") as file:
            for block in self.blocks(name, size):
                file.write(block)
            file.truncate()

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """Yield a file of this size part by part. Raises DataError, RunError."""
        for start in range(0, size, BLOCK_BYTES):
            end = min(size, start + BLOCK_BYTES)
            yield self._patiently(name, functools.partial(_read_block, start=start, end=end))

    def _patiently(self, name: str, work: Callable) -> Result:
        """Return work(file system, path), tried again where the store does not answer."""
        address, failures = self.path_of(name), []
        patience = Patience(NOTE_SECONDS, MOST_SECONDS, fix=STORE_FIX)
        while True:
            began = time.monotonic()
            try:
                return work(*_opened(address))
            except FileNotFoundError as error:
                fix = "see that the address is right and the upload was complete"
                raise DataError(address, "is missing in the store", fix) from error
            except PermissionError as error:
                fix = "see to your credentials and the bucket's policy"
                raise DataError(address, f"may not be read ({error})", fix) from error
            except ConfigError:
                raise
            except Exception as error:
                if type(error).__name__ in REFUSED or isinstance(error, ValueError):
                    fix = "set up the store's credentials and region, as for its own tools"
                    raise ConfigError(f"{address}: {error}: {fix}") from error
                failures.append(" ".join(f"{type(error).__name__}: {error}".split()))
            pause = PAUSES[min(len(failures), len(PAUSES)) - 1]
            time.sleep(pause)
            seconds = min(time.monotonic() - began, TRY_SECONDS)  # of the store's own tries, too
            patience.waited_in_vain(lambda: f"{address} ({failures[-1]})", seconds)


def _opened(address: str):
    """Return (file system, path in it). Raises ConfigError for a kind of store that is not known here."""
    import fsspec  # slow, and for addresses only

    try:
        files, path = fsspec.core.url_to_fs(address, use_listings_cache=False)
        _file_systems[id(files)] = files  # one for each thread of a process
        return files, path
    except ImportError as error:
        fix = "pip install -r requirements-remote.txt (for s3://), or the package that fsspec names"
        raise ConfigError(f"{address}: {error}: {fix}") from error
    except ValueError as error:
        fix = "give a folder, or an address as s3://BUCKET/SHARDS"
        raise ConfigError(f"{address}: {error}: {fix}") from error


def _read_block(files, path: str, *, start: int, end: int) -> bytes:
    content = files.cat_file(path, start=start, end=end)
    if len(content) != end - start:
        raise OSError(f"{len(content)} bytes came of {end - start}, from byte {start} on")
    return content
