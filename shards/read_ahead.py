"""Shards fetched before their turn, by threads that know the order of the samples."""

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from system.errors import RunError, UserError

from .cache import ShardCache
from .index import Shard, ShardIndex
from .order import ShardOrder
from .store import LocalShards

NUM_THREADS = 4
IDLE_SECONDS = 0.5


class InShards:
    """A dataset of samples in shards: `index` has them, `store` the shards, `numbers` [N] are its samples."""

    index: ShardIndex
    store: LocalShards | ShardCache
    numbers: np.ndarray

    @property
    def shard_numbers(self) -> np.ndarray:
        """Return the shard of each sample, int32 [N]."""
        return self.index.shard_numbers[self.numbers]

    def followed(self, batches: Iterator[dict], order: Callable[[int], np.ndarray]) -> Iterator[dict]:
        """Return the batches; while they are trained, the shards of those after them are fetched.

        order(epoch): the indices of an epoch's samples as they are trained.
        """
        if not isinstance(self.store, ShardCache):
            return batches
        numbers = self.shard_numbers
        return ReadAhead(self.store, self.index.shards, lambda epoch: numbers[order(epoch)]).follow(batches)


class ReadAhead:
    """Fetches what comes next while training runs; what goes wrong is left to the reader to meet, and to say.

    shards_in_order(epoch): the shards of an epoch's samples in the order in which they are trained.
    """

    def __init__(
        self, cache: ShardCache, shards: Sequence[Shard], shards_in_order: Callable[[int], np.ndarray]
    ) -> None:  # fmt: skip
        self.cache, self.shards, self.shards_in_order = cache, shards, shards_in_order
        self.most = max(1, cache.max_bytes // max(shard.size for shard in shards) - 1)
        self._orders: dict[int, tuple[ShardOrder, int]] = {}
        self._over, self._lock = threading.Event(), threading.Lock()
        self._wanted: list[int] = []
        self._busy: set[int] = set()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(NUM_THREADS)]

    def follow(self, batches: Iterator[dict]) -> Iterator[dict]:
        """Yield the batches, and fetch what those after them need."""
        try:
            for batch in batches:
                self._move(batch["position"][-1])
                yield batch
        finally:
            self._over.set()
            batches.close()

    def _move(self, position: int) -> None:
        wanted = self.needed_from(position)
        with self._lock:
            if wanted != self._wanted:
                self._wanted = wanted
                self.cache.protected = {self.cache.folder / self.shards[number].name for number in wanted}
        for thread in self._threads:  # now that the data workers have been started: threads do not fork
            if thread.ident is None:
                thread.start()

    def needed_from(self, position: int) -> list[int]:
        """Return the shards that samples from a position of the stream on need, as many as fit."""
        epoch, place = divmod(position, self._order(0)[1])
        wanted = self._order(epoch)[0].needed_from(place, self.most)
        if len(wanted) < self.most:
            later = self._order(epoch + 1)[0].needed_from(0, self.most)
            wanted = list(dict.fromkeys([*wanted, *later]))[: self.most]
        for past in [one for one in self._orders if 0 < one < epoch]:
            del self._orders[past]
        return wanted

    def _order(self, epoch: int) -> tuple[ShardOrder, int]:
        """Return (an epoch's order, its number of samples)."""
        if epoch not in self._orders:
            numbers = self.shards_in_order(epoch)
            self._orders[epoch] = ShardOrder(numbers), len(numbers)
        return self._orders[epoch]

    def _next(self) -> Shard | None:
        with self._lock:
            for number in self._wanted:
                if number not in self._busy and not self.cache.has(self.shards[number]):
                    self._busy.add(number)
                    return self.shards[number]
        return None

    def _work(self) -> None:
        while not self._over.is_set():
            shard = self._next()
            if shard is None:
                self._over.wait(IDLE_SECONDS)
                continue
            try:
                if not self.cache.try_fetch(shard):
                    self._over.wait(IDLE_SECONDS)  # another process is about it
            except (UserError, RunError, OSError):
                self._over.wait(10 * IDLE_SECONDS)
            finally:
                with self._lock:
                    self._busy.discard(shard.number)
