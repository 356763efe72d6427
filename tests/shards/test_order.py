"""The order of the samples of shards: each once per epoch, few shards at a time, alike for any processes."""

import numpy as np
import torch

from shards.order import SHARDS_PER_GROUP, ShardOrder, grouped_order
from training.batches import SampleStream

SHARD_NUMBERS = np.repeat(np.arange(20, dtype=np.int32), 3)[torch.randperm(60).numpy()]


def order(seed: int, numbers=SHARD_NUMBERS) -> np.ndarray:
    return grouped_order(numbers, torch.Generator().manual_seed(seed))


def test_samples_come_once_and_in_groups_of_shards():
    found = order(0)
    assert sorted(found.tolist()) == list(range(60))
    for first in range(0, 60, 3 * SHARDS_PER_GROUP):
        assert len(np.unique(SHARD_NUMBERS[found[first : first + 3 * SHARDS_PER_GROUP]])) <= SHARDS_PER_GROUP
    assert np.array_equal(order(0), found)
    assert not np.array_equal(order(1), found)


def test_few_shards_give_the_order_of_a_folder():
    indices = list(range(100, 107))
    folder = SampleStream(indices, batch_size=1, seed=3)
    shards = SampleStream(indices, batch_size=1, seed=3, shard_numbers=np.array([0, 1, 2, 3, 0, 1, 2]))
    for epoch in range(3):
        assert list(shards.order(epoch)) == folder.order(epoch)


def test_processes_share_the_order():
    def clips(num_processes, start=0):
        streams = [
            iter(SampleStream(
                range(60), batch_size=2, seed=1, rank=rank, num_processes=num_processes, start_position=start,
                shard_numbers=SHARD_NUMBERS,
            ))
            for rank in range(num_processes)
        ]  # fmt: skip
        return [clip for _ in range(80 // num_processes) for stream in streams for clip in next(stream)]

    assert clips(1) == clips(2) == clips(4)
    assert clips(2, start=40) == clips(1)[40:] + clips(1, start=160)[:40]


def test_what_is_needed_next():
    needed = ShardOrder(np.array([4, 4, 1, 4, 1, 7, 7]))
    assert needed.needed_from(0, 9) == [4, 1, 7]
    assert needed.needed_from(4, 9) == [1, 7]
    assert needed.needed_from(0, 2) == [4, 1]
    assert needed.needed_from(6, 2) == [7]
