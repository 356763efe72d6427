"""Mean and standard deviation of features over a whole training set, merged sample by sample."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Moments(NamedTuple):
    """What a sample's rows [n, D] add to the statistics."""

    count: int
    mean: np.ndarray  # float64 [D]
    squares: np.ndarray  # float64 [D]: sums of squared distances from the mean

    @classmethod
    def of(cls, rows: np.ndarray) -> "Moments":
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        return cls(len(rows), mean, ((rows - mean) ** 2).sum(0))


def flat_rows(values: np.ndarray, channels: int) -> np.ndarray:
    """Return rows [N, D, ...] as [n, D]."""
    return np.moveaxis(values, 1, -1).reshape(-1, channels)


def mean_and_deviation(parts: Iterable[Moments]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [D] of the rows of all parts.

    Merged part by part (Chan et al. 1979): exact for features far from zero, too.
    """
    count, mean, squares = 0, 0.0, 0.0
    for part in parts:
        shift, total = part.mean - mean, count + part.count
        squares = squares + part.squares + shift**2 * count * part.count / total
        mean, count = mean + shift * part.count / total, total
    return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(squares / count)).float()
