"""How far two sets of features are apart, and how far a video leaves its own beginning.

With 10 to 100 videos only the unbiased MMD kinds mean anything: a Frechet distance of few samples is mostly
their number. Frames of one clip, and a prediction beside its truth, are not independent samples either: the
`*_table` functions compare only what comes from different clips, so that values of few clips are not pulled
up or down, and truth against itself is exactly 0. Features are of any network (`evaluation/networks.py`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

SCALE = 1000  # CMMD's own, for numbers that one can read
CMMD_SIGMA = 10  # of the kernel, for features of length 1
_ROWS_AT_ONCE = 1024
_MOST_LAGS = 32

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # [N, D], [M, D] -> [N, M]


class Drift(NamedTuple):
    """Mean cosine between the features of frames that lie `lags` seconds apart, both float64 [L]."""

    lags: np.ndarray
    cosine: np.ndarray

    @property
    def fall(self) -> float:
        """How much the cosine falls from the shortest lag to the longest: 0 where nothing ever changes.

        NaN with fewer than two lags, which fewer than five frames have: one lag cannot fall.
        """
        return float(self.cosine[0] - self.cosine[-1]) if len(self.cosine) > 1 else float("nan")


def cmmd(first: np.ndarray, second: np.ndarray) -> float:
    """Return 1000 times the squared MMD of features [N, D] and [M, D], kernel exp(-|x - y|^2 / (2 * 10^2)).

    CMMD, arXiv:2401.09603: CLIP image embeddings, scaled to length 1 here. The paper's unbiased estimate:
    mean kernel over pairs of different rows within each set, minus twice the mean between the sets. It is 0
    on average where both come from one distribution, and may be negative; lower is better. The published
    code counts each row with itself too, which adds about 1000 * (1 - mean kernel) * (1/N + 1/M).
    Rows must be independent samples: for clips of frames see `cmmd_table`. NaN with fewer than two rows.
    """
    return _mmd(_unit(first), _unit(second), _gaussian)


def cmmd_table(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Return a symmetric table [C, C]; its mean over pairs of different clips is the CMMD of the two sets.

    `first` and `second` hold one array [F, D] per clip, the same clips in the same order (prediction, truth).
    Entry (a, b) is 1000 * (k(first a, first b) + k(second a, second b) - k(first a, second b) -
    k(second a, first b)), mean kernels over all frames of the two clips, which weigh the same whatever their
    lengths. See `mean_of_pairs` for the value and `confidence.bootstrap_pairs` for its interval.
    """
    return _table([_unit(one) for one in first], [_unit(one) for one in second], _gaussian)


def polynomial_mmd(first: np.ndarray, second: np.ndarray) -> float:
    """Return 1000 times the squared MMD of features [N, D] and [M, D], kernel (x . y / D)^2.

    JEDi's, arXiv:2410.05203, for features of a video encoder (its own is V-JEPA). Unbiased as `cmmd`; the
    published code counts each row with itself and multiplies by 100. Lower is better. The scale depends on
    the encoder: compare only values of one encoder.
    """
    return _mmd(*(np.asarray(one, np.float64) for one in (first, second)), _quadratic)


def polynomial_mmd_table(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Return what `cmmd_table` does, with the kernel of `polynomial_mmd`; rows are pieces of a clip."""
    sets = ([np.asarray(one, np.float64) for one in clips] for clips in (first, second))
    return _table(*sets, _quadratic)


def mean_of_pairs(table: np.ndarray) -> float:
    """Return the mean of a symmetric table [C, C] over pairs of different clips; NaN with fewer than two."""
    num_clips = len(table)
    if num_clips < 2:
        return float("nan")
    return float((table.sum() - np.trace(table)) / (num_clips * (num_clips - 1)))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Return |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)) of features [N, D] and [M, D], covariances A, B.

    FID with Inception's features (arXiv:1706.08500), FVD with I3D's (arXiv:1812.01717), FID-VID with a 3D
    ResNet's. 0 is best. It falls as samples are added, by much more than models differ as long as there are
    fewer samples than several times D: never compare values of different numbers of samples. FVD sees single
    frames better than motion (arXiv:2404.12391). NaN with fewer than two rows.
    """
    first, second = (np.asarray(one, dtype=np.float64) for one in (first, second))
    if min(len(first), len(second)) < 2:
        return float("nan")
    difference = first.mean(axis=0) - second.mean(axis=0)
    roots = [_covariance_root(one) for one in (first, second)]
    # The eigenvalues of A B are the squared singular values of (root of A) (root of B)^T: no matrix square
    # root is needed, which is inexact for the singular matrices of few samples.
    overlap = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(float((root**2).sum()) for root in roots)
    return max(0.0, float(difference @ difference) + spread - 2 * float(overlap))


def drift(features: np.ndarray, seconds: np.ndarray) -> Drift:
    """Return (lags, cosine): how alike frames are that lie so many seconds apart, over growing lags.

    For features [N, D] of frames at rising `seconds` [N]. Cosine in [-1, 1]; up to 32 lags, evenly in their
    logarithm, from the usual distance of two frames to half the video, so that each is a mean over at least
    half of it. A video that keeps its person and scene stays level after the first lags; one that drifts goes
    on falling. Motion lowers it too: read it beside the truth's. No lags with fewer than two frames.
    """
    features, seconds = _unit(features), np.asarray(seconds, dtype=np.float64)
    if len(features) < 2:
        return Drift(np.zeros(0), np.zeros(0))
    step = float(np.median(np.diff(seconds)))
    longest = max(1, int((seconds[-1] - seconds[0]) / step / 2 + 1e-6))
    lags = step * np.unique(np.geomspace(1, longest, _MOST_LAGS).round())
    cosines = np.array([_cosine_at(features, seconds, lag, step / 2) for lag in lags])
    found = ~np.isnan(cosines)
    return Drift(lags[found], cosines[found])


def _cosine_at(features: np.ndarray, seconds: np.ndarray, lag: float, tolerance: float) -> float:
    """Return the mean cosine of each frame with the one nearest to `lag` seconds later; NaN without any."""
    targets = seconds + lag
    after = np.clip(np.searchsorted(seconds, targets), 1, len(seconds) - 1)
    partners = after - (targets - seconds[after - 1] < seconds[after] - targets)
    is_pair = (np.abs(seconds[partners] - targets) <= tolerance) & (partners > np.arange(len(seconds)))
    if not is_pair.any():
        return float("nan")
    return float(np.einsum("nd,nd->n", features[is_pair], features[partners[is_pair]]).mean())


def _mmd(first: np.ndarray, second: np.ndarray, kernel: Kernel) -> float:
    if min(len(first), len(second)) < 2:
        return float("nan")
    within = sum(_mean_apart(one, kernel) for one in (first, second))
    between = sum(kernel(rows, second).sum() for rows in _blocks(first)) / (len(first) * len(second))
    return float(SCALE * (within - 2 * between))


def _mean_apart(features: np.ndarray, kernel: Kernel) -> float:
    """Return the mean kernel over pairs of different rows."""
    total = sum(kernel(rows, features).sum() for rows in _blocks(features))
    itself = sum(np.trace(kernel(rows, rows)) for rows in _blocks(features))
    return (total - itself) / (len(features) * (len(features) - 1))


def _table(first: list[np.ndarray], second: list[np.ndarray], kernel: Kernel) -> np.ndarray:
    num_clips = len(first)
    if num_clips == 0:
        return np.zeros((0, 0))
    means = _clip_means([*first, *second], kernel)  # [2 C, 2 C]
    within = means[:num_clips, :num_clips] + means[num_clips:, num_clips:]
    between = means[:num_clips, num_clips:]
    return SCALE * (within - between - between.T)


def _clip_means(clips: list[np.ndarray], kernel: Kernel) -> np.ndarray:
    """Return the mean kernel [C, C] between the rows of each two clips."""
    rows = np.concatenate(clips)
    lengths = np.array([len(clip) for clip in clips])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    sums = [
        sum(np.add.reduceat(kernel(some, rows), starts, axis=1).sum(axis=0) for some in _blocks(clip))
        for clip in clips
    ]
    return np.stack(sums) / np.outer(lengths, lengths)


def _blocks(features: np.ndarray) -> list[np.ndarray]:
    return [features[start : start + _ROWS_AT_ONCE] for start in range(0, len(features), _ROWS_AT_ONCE)]


def _gaussian(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    distances = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return np.exp(-distances / (2 * CMMD_SIGMA**2))


def _quadratic(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1]) ** 2


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, dtype=np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def _covariance_root(features: np.ndarray) -> np.ndarray:
    """Return R [at most D, D] with R^T R = covariance of features [N, D]."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    return np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred
