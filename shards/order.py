"""The order in which the samples of shards are trained: few shards at a time, and yet well mixed."""

import numpy as np
import torch

SHARDS_PER_GROUP = 8  # read at a time; the order depends on it, so it is no setting


def grouped_order(shard_numbers: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Return the places 0..N-1 of N samples in a random order, group of shards by group of shards.

    shard_numbers: of each sample, [N]. The shards are permuted, then the samples within each group of shards.
    A single group's order is that of a data folder with the same samples.
    """
    order = torch.randperm(len(shard_numbers), generator=generator).numpy()
    present, numbers = np.unique(shard_numbers, return_inverse=True)
    ranks = torch.randperm(len(present), generator=generator).numpy()
    groups = ranks[numbers[order]] // SHARDS_PER_GROUP
    return order[np.argsort(groups, kind="stable")]


class ShardOrder:
    """Which shards are needed from which place of an epoch on.

    shard_numbers: of the samples in the order in which they are trained.
    """

    def __init__(self, shard_numbers: np.ndarray) -> None:
        found, first = np.unique(shard_numbers, return_index=True)
        last = len(shard_numbers) - 1 - np.unique(shard_numbers[::-1], return_index=True)[1]
        by_place = np.argsort(first)
        self.numbers, self.last = found[by_place], last[by_place]

    def needed_from(self, place: int, most: int) -> list[int]:
        """Return at most `most` shards of the samples from a place on, those needed first before others."""
        return self.numbers[self.last >= place][:most].tolist()
