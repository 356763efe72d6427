"""Shards held against their index, and unpacked into a data folder again."""

import functools
import hashlib
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from datasets.checking.data_report import printable
from system.errors import DataError
from system.processes import BAR_DELAY, map_in_processes
from system.whole_files import whole_file

from .fetching import Store, is_address
from .index import PACK_AGAIN, SampleRow, Shard, ShardIndex
from .layout import INDEX_NAME

NUM_STREAMS = 4  # of a store at a time
COPY_AGAIN = f"copy it again from where it was made, or remove it and {PACK_AGAIN}"


def verify_shards(data_root: str | Path, *, num_workers: int | None = None) -> int:
    """Read all shards and hold them against the index; print what differs; return the exit code.

    Those of an address are read and not kept.
    """
    if is_address(data_root):
        index, found = _found_in_store(Store(str(data_root)))
    else:
        index = ShardIndex(Path(data_root, INDEX_NAME))
        check = functools.partial(_problems_of_shard, Path(data_root))
        found = map_in_processes(
            check, index.shards, num_workers=num_workers, title="verifying", crashed=_crashed
        )
    problems = [problem for one in found for problem in one]
    for problem in problems:
        print(printable(f"error: {problem}"), file=sys.stderr)
    state = f"{len(problems)} of them not as the index says" if problems else "all as the index says"
    print(printable(f"{data_root}: {index.count()}, {state}"))
    return 2 if problems else 0


def _found_in_store(store: Store) -> tuple[ShardIndex, list[list[str]]]:
    """Return a store's index, and the problems of each of its shards. Raises DataError, RunError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, INDEX_NAME)
        path.touch()
        store.fetch(INDEX_NAME, store.size_of(INDEX_NAME), path)
        index = ShardIndex(path)
        with ThreadPoolExecutor(NUM_STREAMS) as pool:
            found = pool.map(functools.partial(_problems_in_store, store), index.shards)
            return index, list(tqdm(found, "verifying", len(index.shards), delay=BAR_DELAY, leave=False))


def _problems_in_store(store: Store, shard: Shard) -> list[str]:
    """Return what is wrong with a shard of a store: the index has the sum of its bytes."""
    digest = hashlib.sha256()
    try:
        size = store.size_of(shard.name)
        for block in store.blocks(shard.name, size) if size == shard.size else ():
            digest.update(block)
    except DataError as error:
        return [str(error)]
    if (size, digest.hexdigest()) == (shard.size, shard.sha256):
        return []
    problem = f"is not as the index says ({size:,} bytes, expected {shard.size:,})"
    return [str(DataError(store.path_of(shard.name), problem, f"upload it again, or {PACK_AGAIN}"))]


def _problems_of_shard(folder: Path, shard: Shard) -> list[str]:
    path = folder / shard.name
    try:
        with path.open("rb", buffering=0) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = path.stat().st_size
    except OSError as error:
        return [str(DataError(path, f"cannot be read ({error.strerror or error})", COPY_AGAIN))]
    if (size, digest) == (shard.size, shard.sha256):
        return []
    index = ShardIndex(folder / INDEX_NAME)
    with path.open("rb") as file:
        bad = [row.name for row in index.rows_of(shard.number) if not _is_whole(file, row)]
    which = f", of its samples {', '.join(bad[:5])}{', ...' * (len(bad) > 5)}" if bad else ""
    problem = f"is not as the index says ({size:,} bytes, expected {shard.size:,}){which}"
    return [str(DataError(path, problem, COPY_AGAIN))]


def _is_whole(file, row: SampleRow) -> bool:
    file.seek(row.offset)
    return hashlib.sha256(file.read(row.size)).hexdigest() == row.sha256


def _crashed(shard: Shard) -> list[str]:
    return [f"{shard.name}: the process that read it died; start the same command again"]


def unpack_shards(folder: Path, output_dir: Path, *, num_workers: int | None = None) -> int:
    """Write the data folder that shards were made of, over no other files; return the exit code."""
    index = ShardIndex(folder / INDEX_NAME)
    latents = index.about.get("latents")
    target = output_dir if latents is None else output_dir / latents["folder"]
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        if not (output_dir / "videos" if latents is None else target).is_dir():
            raise DataError(output_dir, "is there and no data folder", "give a new folder")
    if latents is not None:
        _make(target)
        text = json.dumps(latents["settings"], indent=1)
        (target / latents["settings_name"]).write_text(text, encoding="utf-8")
    unpack = functools.partial(_unpack_shard, folder, target)
    found = map_in_processes(
        unpack, index.shards, num_workers=num_workers, title="unpacking", crashed=_crashed
    )
    problems = [problem for one in found for problem in one]
    for problem in problems:
        print(printable(f"error: {problem}"), file=sys.stderr)
    left = ", but for what is named above" if problems else ""
    print(printable(f"{output_dir}: {len(index)} samples unpacked{left}"))
    return 2 if problems else 0


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error})"
        raise DataError(folder, problem, "give another --output_dir") from error


def _unpack_shard(folder: Path, output_dir: Path, shard: Shard) -> list[str]:
    """Write the files of a shard's samples that are not there; return what hindered it."""
    index, path, problems = ShardIndex(folder / INDEX_NAME), folder / shard.name, []
    try:
        with path.open("rb") as file:
            for row in index.rows_of(shard.number):
                file.seek(row.offset)
                content = file.read(row.size)
                if hashlib.sha256(content).hexdigest() != row.sha256:
                    problems.append(str(DataError(path, f"sample {row.name!r} is damaged", COPY_AGAIN)))
                    continue
                try:
                    _write_files(output_dir, row, content)
                except DataError as error:
                    problems.append(str(error))
                except OSError as error:  # a write that fails names no file
                    raise OSError(error.errno, error.strerror, error.filename or str(output_dir)) from error
    except OSError as error:
        where = error.filename or path
        problems.append(str(DataError(where, f"{error.strerror or error}", "see to it, then start again")))
    return problems


def _write_files(output_dir: Path, row: SampleRow, content: bytes) -> None:
    for name, (offset, size) in row.files.items():
        target = output_dir / name
        part = content[offset - row.offset : offset - row.offset + size]
        if target.is_file() and target.stat().st_size == size and target.read_bytes() == part:
            continue  # a meta.json that others have too, or of a run that was stopped
        if target.exists():
            fix = "move it away, or give a new folder"
            raise DataError(target, f"is there and is not the one of sample {row.name!r}", fix)
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as aside:
            aside.write_bytes(part)
