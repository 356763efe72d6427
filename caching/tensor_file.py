"""A safetensors file that is written row by row: the tensors of a video may be larger than memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

Layout = dict[str, tuple[torch.dtype, list[int]]]  # {name: (dtype, shape)}
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}  # as safetensors calls them


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
