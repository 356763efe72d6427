"""safetensors files as the library has none: written row by row, as the tensors of a video may be larger than
memory, and read out of a larger file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from datasets.packed_files import open_bytes
from system.errors import DataError, UserError

Layout = dict[str, tuple[torch.dtype, list[int]]]  # {name: (dtype, shape)}
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # as safetensors calls them  # fmt: skip
DTYPES_BY_NAME = {name: dtype for dtype, name in DTYPES.items()}


class TensorFile:
    """A file of the tensors of `layout`; `put` writes rows of one. To be used in a `with` block."""

    def __init__(self, path: Path, layout: Layout, metadata: dict[str, str]) -> None:
        self.path, self.places, end = path, {}, 0
        header: dict[str, dict] = {"__metadata__": metadata}
        for name, (dtype, shape) in layout.items():
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
            self.places[name] = begin
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight bytes
        self.head = len(text).to_bytes(8, "little") + text
        self.num_bytes = len(self.head) + end

    def __enter__(self) -> TensorFile:
        self.file: BinaryIO = self.path.open("wb")
        self.file.write(self.head)
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def put(self, name: str, rows: Tensor, first_row: int = 0) -> None:
        """Write rows of a tensor, on the CPU and of its dtype, from `first_row` on. Raises OSError."""
        row_bytes = rows.nbytes // len(rows)
        self.file.seek(len(self.head) + self.places[name] + first_row * row_bytes)
        self.file.write(rows.contiguous().reshape(-1).view(torch.uint8).numpy().data)


class PackedTensors:
    """The tensors of an opened file; rows are read when they are asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        head = int.from_bytes(file.read(8), "little")
        self.entries = json.loads(file.read(head))
        self.entries.pop("__metadata__", None)
        self.start = 8 + head

    def keys(self) -> list[str]:
        return sorted(self.entries)

    def get_tensor(self, name: str) -> Tensor:
        entry = self.entries[name]
        return self.read(name, 0, math.prod(entry["shape"])).reshape(entry["shape"])

    def get_slice(self, name: str) -> PackedRows:
        return PackedRows(self, name)

    def read(self, name: str, first: int, count: int) -> Tensor:
        """Return values of a tensor, flat: `count` from `first` on."""
        dtype = DTYPES_BY_NAME[self.entries[name]["dtype"]]
        content = bytearray(count * dtype.itemsize)
        self.file.seek(self.start + self.entries[name]["data_offsets"][0] + first * dtype.itemsize)
        if self.file.readinto(content) != len(content):
            raise EOFError(f"{name} ends early")
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


class PackedRows:
    """A tensor, of which `[first:last:step]` are read."""

    def __init__(self, tensors: PackedTensors, name: str) -> None:
        self.tensors, self.name, self.shape = tensors, name, tensors.entries[name]["shape"]

    def get_shape(self) -> list[int]:
        return self.shape

    def __getitem__(self, rows: slice) -> Tensor:
        first, last, step = rows.indices(self.shape[0])
        size = math.prod(self.shape[1:])
        spans = [(first, last - first)] if step == 1 else [(row, 1) for row in range(first, last, step)]
        parts = [self.tensors.read(self.name, size * row, size * count) for row, count in spans]
        return torch.cat(parts).reshape(-1, *self.shape[1:])


@contextmanager
def packed_tensors(path: Path) -> Iterator[PackedTensors]:
    """Yield the tensors of a packed file. Raises DataError."""
    try:
        with open_bytes(path) as file:
            yield PackedTensors(file)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, KeyError) as error:
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise DataError(path, problem, "pack the latent cache again with pack_guidance.py") from error
