"""A small memory of what was read last, for data-loading workers that live long."""

from collections import OrderedDict
from collections.abc import Hashable


class ByteCache:
    """Keeps what was used last, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.entries: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()

    def get(self, key: Hashable):
        if key not in self.entries:
            return None
        self.entries.move_to_end(key)
        return self.entries[key][0]

    def put(self, key: Hashable, value: object, num_bytes: int) -> None:
        num_bytes += 200  # of keeping an entry
        if key in self.entries:
            self.num_bytes -= self.entries.pop(key)[1]
        self.entries[key] = (value, num_bytes)
        self.num_bytes += num_bytes
        while self.num_bytes > self.max_bytes:
            self.num_bytes -= self.entries.popitem(last=False)[1][1]

    def __reduce__(self) -> tuple:
        return ByteCache, (self.max_bytes,)  # a worker starts with an empty one
