"""Means, deviations and longest bones of a data folder, measured take by take in constant memory."""

import torch
from torch import Tensor

from .model import MusicToPoseModel
from .representation import NUM_ROOT_COLUMNS, PoseRepresentation

BIN, NUM_BINS = 0.01, 1000  # of bone lengths, torso lengths
LONGEST_SHARE, LENGTHENING = 0.99, 1.05  # a bone may be this much longer than all but 1 % in the data


class Statistics:
    """`add` each take of the training data once, then `give_to` the model."""

    def __init__(self, model: MusicToPoseModel) -> None:
        self.representation = PoseRepresentation(model.config.num_key_points, model.config.frame_rate)
        self.pose = Moments(self.representation.num_values)
        self.music = Moments(model.music_features.num_columns)
        self.bones = torch.zeros(self.representation.num_bones, NUM_BINS)  # frames by length

    def add(self, key_points: Tensor, reference_pose: Tensor, music: Tensor) -> None:
        """Count a take: key points [F, K, 3], reference [K, 3] in heights of the frame, music [F, D']."""
        values, weights = self.representation.encode(key_points[None], reference_pose[None])  # [1, F, P]
        self.pose.add(values[0], weights[0])
        self.music.add(music, torch.ones_like(music))
        lengths = values[0, :, NUM_ROOT_COLUMNS:].unflatten(-1, (-1, 2)).norm(dim=-1)  # [F, n]
        bins = (lengths / BIN).long().clamp(0, NUM_BINS - 1)  # [F, n]
        self.bones.scatter_add_(1, bins.T, (weights[0, :, NUM_ROOT_COLUMNS::2].T > 0).float())

    def give_to(self, model: MusicToPoseModel) -> None:
        """Set the model's statistics; a bone that was never seen has no limit."""
        share = self.bones.cumsum(1) / self.bones.sum(1, keepdim=True).clamp(min=1)  # [n, bins]
        limits = LENGTHENING * BIN * (1 + (share < LONGEST_SHARE).sum(1))
        model.set_statistics(self.pose.result(), self.music.result(), limits)


class Moments:
    """Weighted mean and standard deviation of columns; float64, as many frames are summed."""

    def __init__(self, num_columns: int) -> None:
        self.count, self.sum, self.square = (torch.zeros(num_columns, dtype=torch.float64) for _ in range(3))

    def add(self, rows: Tensor, weights: Tensor) -> None:
        rows, weights = rows.double(), weights.double()
        self.count += weights.sum(0)
        self.sum += (weights * rows).sum(0)
        self.square += (weights * rows.square()).sum(0)

    def result(self) -> tuple[Tensor, Tensor]:
        count = self.count.clamp(min=1e-6)
        mean = self.sum / count
        return mean.float(), (self.square / count - mean.square()).clamp(min=0).sqrt().float()
