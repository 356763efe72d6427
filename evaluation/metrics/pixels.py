"""How near a frame is to the true one, pixel by pixel: PSNR, SSIM and L1, and the same in the published form.

All take prediction and truth as uint8 RGB frames of the same shape [F, H, W, 3], raise ValueError for others,
and return float64 [F]. They see blur, noise, wrong colours and a wrong pose alike, and punish a dancer who is
a hand's breadth off as much as one who is not there; sharp and slightly shifted scores below blurred. Each
frame is measured by itself, in integers or float64: how a video is cut into chunks changes no bit.

`*_legacy` have the formulas of DisCo's evaluation (github.com/Wangt-CN/DisCo,
tool/metrics/ssim_l1_lpips_psnr.py, before commit 6190108 of April 2024), by which MagicAnimate, CHAMP and
others published their tables: they serve to read those tables, and for nothing else. DisCo averages over all
frames of all videos and measured frames of 256 x 256 pixels.
"""

from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import torch

from datasets.body.regions import region_boxes

MAX_LEVEL = 255
MAX_PSNR = 100.0  # of identical frames
SSIM_CONSTANTS = (0.01 * MAX_LEVEL) ** 2, (0.03 * MAX_LEVEL) ** 2  # C1, C2
GAUSSIAN_SIGMA, GAUSSIAN_RADIUS = 1.5, 5
BOX_SIDE = 7
BAND_VALUES = 1 << 16  # of a frame at once: half a MiB of float64
LEAST_SIDE = 4  # pixels of the shorter side of a hand's or face's box


def psnr(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio in dB, 0 to 100; higher is better.

    10 log10(255^2 / MSE), the mean squared error over all pixels and channels of a frame. Identical frames
    count as 100, and nothing counts as more. Two unrelated images have 5 to 10 dB, a video compressed by
    H.264 30 to 45. The mean over frames is of decibels: a single bad frame is not drowned by an MSE over all.
    """
    return _per_frame(_psnr, prediction, truth)


def ssim(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the structural similarity, -1 to 1; higher is better, 1 is identical.

    (2 ux uy + C1) (2 sxy + C2) / ((ux^2 + uy^2 + C1) (sx + sy + C2)), u means and s (co)variances under a
    Gaussian window of 11 x 11 pixels, sigma 1.5, C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2; averaged over the
    windows inside the frame and the colour channels (Wang et al., Image Quality Assessment, IEEE TIP 13(4),
    2004). The same as scikit-image's structural_similarity with gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255, channel_axis=-1. It depends on the resolution: the smaller
    the frame, the larger the structures that a window spans.

    Raises ValueError for frames smaller than a window.
    """
    return _per_frame(_colour_similarity, prediction, truth)


def l1(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference over pixels and channels in levels, 0 to 255; lower is better."""
    return _per_frame(_mean_difference, prediction, truth)


def psnr_legacy(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return PSNR in dB as DisCo's code had it: with the overflow of 8-bit arithmetic. Not a quality.

    20 log10(255 / sqrt(MSE)), 100 where the MSE is 0, where difference and square are taken modulo 256: the
    error of a pixel is at most 255 instead of 65025, and 0 where the frames differ by 16. Above errors of 15
    levels it says nothing: two frames of noise have about 28 dB, and it can rise while the frames get worse.
    """
    return _per_frame(_overflowing_psnr, prediction, truth)


def ssim_legacy(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the structural similarity as DisCo's code has it, -1 to 1; higher is better.

    As `ssim`, but of grey frames (0.299 R + 0.587 G + 0.114 B, rounded), in boxes of 7 x 7 pixels and with
    sample covariances (divided by 48, not 49): scikit-image's defaults. Blind to colours of equal brightness.

    Raises ValueError for frames smaller than a box.
    """

    return _per_frame(_grey_similarity, prediction, truth)


def l1_legacy(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return L1 as DisCo's code has it: `l1` divided by the number of pixels H x W; lower is better.

    So it falls to a quarter when the frame's sides double: comparable at one resolution only.
    """
    return l1(prediction, truth) / (truth.shape[1] * truth.shape[2])


def hand_psnr(prediction: np.ndarray, truth: np.ndarray, key_points: np.ndarray) -> np.ndarray:
    """Return the PSNR of the hands' boxes in dB, 0 to 100; higher is better. NaN where no hand is visible.

    The box of a hand is that of its points of confidence 0.3 and more (at least 5) with a fifth of its longer
    side added all around, cut at the frame; both hands count as one image. key_points are the truth's, of
    134 points in OpenPose's order: others have no hands, all is NaN. Hands of a few pixels say little.
    """
    return _psnr_of_region(prediction, truth, key_points, "hands")


def face_psnr(prediction: np.ndarray, truth: np.ndarray, key_points: np.ndarray) -> np.ndarray:
    """Return the PSNR of the face's box in dB, 0 to 100; higher is better. NaN where no face is visible.

    As `hand_psnr`; 92 or 134 points have a face. The box spans chin to brows, not the hair.
    """
    return _psnr_of_region(prediction, truth, key_points, "face")


# ---- of one frame ----


def _psnr(prediction: np.ndarray, truth: np.ndarray) -> float:
    return _as_psnr(_squared_error(prediction, truth), truth.size)


def _as_psnr(squared_error: float, count: int) -> float:
    return min(MAX_PSNR, 10 * np.log10(MAX_LEVEL**2 * count / squared_error)) if squared_error else MAX_PSNR


def _squared_error(prediction: np.ndarray, truth: np.ndarray) -> float:
    return cv2.norm(prediction, truth, cv2.NORM_L2SQR)  # sums integers: exact


def _mean_difference(prediction: np.ndarray, truth: np.ndarray) -> float:
    return cv2.norm(prediction, truth, cv2.NORM_L1) / truth.size


def _overflowing_psnr(prediction: np.ndarray, truth: np.ndarray) -> float:
    error = cv2.norm(np.square(prediction - truth), cv2.NORM_L1) / truth.size  # both uint8: modulo 256
    return 10 * np.log10(MAX_LEVEL**2 / error) if error else MAX_PSNR


class _Window(NamedTuple):
    """What SSIM averages over."""

    average: Callable[[np.ndarray], np.ndarray]  # of values float64 [H, W, ...] around each pixel
    radius: int
    covariance_factor: float


def _gaussian(values: np.ndarray) -> np.ndarray:
    places = np.arange(-GAUSSIAN_RADIUS, GAUSSIAN_RADIUS + 1)
    weights = np.exp(-0.5 * (places / GAUSSIAN_SIGMA) ** 2)
    weights /= weights.sum()
    return cv2.sepFilter2D(values, cv2.CV_64F, weights, weights)


def _box(values: np.ndarray) -> np.ndarray:
    return cv2.boxFilter(values, cv2.CV_64F, (BOX_SIDE, BOX_SIDE))


def _colour_similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    return _mean_similarity(prediction, truth, _Window(_gaussian, GAUSSIAN_RADIUS, 1.0))


def _grey_similarity(prediction: np.ndarray, truth: np.ndarray) -> float:
    grey = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (prediction, truth))
    sample_covariance = BOX_SIDE**2 / (BOX_SIDE**2 - 1)
    return _mean_similarity(*grey, _Window(_box, BOX_SIDE // 2, sample_covariance))


def _mean_similarity(prediction: np.ndarray, truth: np.ndarray, window: _Window) -> float:
    """Return the mean SSIM over the windows inside two frames.

    In bands of rows that stay in the processor's cache: half the time of whole frames of 512 x 512 pixels.
    """
    height, width, margin = *truth.shape[:2], 2 * window.radius
    if min(height, width) <= margin:
        raise ValueError(f"frames of {width} x {height} are smaller than SSIM's window, {margin + 1} pixels")
    num_rows = max(1, BAND_VALUES * height // truth.size)
    total, count = 0.0, 0
    for top in range(0, height - margin, num_rows):
        band = slice(top, top + num_rows + margin)
        similarities = _similarities(prediction[band], truth[band], window)
        total, count = total + float(similarities.sum()), count + similarities.size
    return total / count


def _similarities(prediction: np.ndarray, truth: np.ndarray, window: _Window) -> np.ndarray:
    """Return the SSIM of each window inside two frames.

    In terms of the sum s and the difference d of the frames, which takes four averages instead of five and
    is exactly 1 for identical frames: 2 xy = x^2 + y^2 - d^2, x^2 + y^2 = (s^2 + d^2) / 2, and so for the
    means as for the (co)variances.
    """
    inside = slice(window.radius, -window.radius)

    def average(values: np.ndarray) -> np.ndarray:
        return window.average(values)[inside, inside]

    difference = cv2.subtract(prediction, truth, dtype=cv2.CV_64F)
    total = cv2.add(prediction, truth, dtype=cv2.CV_64F)
    lost, energy = (np.square(mean, out=mean) for mean in (average(difference), average(total)))
    luminance = _one_less(lost, energy, SSIM_CONSTANTS[0])
    lost, energy = (
        window.covariance_factor * (average(np.square(values, out=values)) - squared_mean)
        for values, squared_mean in ((difference, lost), (total, energy))
    )
    return luminance * _one_less(lost, energy, SSIM_CONSTANTS[1])


def _one_less(lost: np.ndarray, energy: np.ndarray, constant: float) -> np.ndarray:
    """Return 1 - lost / ((lost + energy) / 2 + constant)."""
    return 1 - lost / (0.5 * (lost + energy) + constant)


def _psnr_of_region(
    prediction: np.ndarray, truth: np.ndarray, key_points: np.ndarray, region: str
) -> np.ndarray:
    """Return the PSNR [F] of the boxes of a region's parts, as of one image."""
    points = torch.from_numpy(np.array(key_points))
    boxes = region_boxes(points, region, truth.shape[1:3], LEAST_SIDE).tolist()  # [F, parts, 2, 2]

    def of_frame(one: np.ndarray, other: np.ndarray, found: list) -> float:
        seen = [(slice(*rows), slice(*columns)) for rows, columns in found if rows[1] > rows[0]]
        squared_error = sum(_squared_error(one[box], other[box]) for box in seen)
        return _as_psnr(squared_error, sum(one[box].size for box in seen)) if seen else np.nan

    return _per_frame(of_frame, prediction, truth, boxes)


# ---- of all frames ----


def _per_frame(
    of_frame: Callable[..., float], prediction: np.ndarray, truth: np.ndarray, *more
) -> np.ndarray:
    """Return the value of each frame, float64 [F]."""
    check_frames(prediction, truth)
    return np.array([of_frame(*frame) for frame in zip(prediction, truth, *more, strict=True)], np.float64)


def check_frames(*videos: np.ndarray) -> None:
    """Raise ValueError unless all are uint8 [F, H, W, 3] of one shape."""
    for frames in videos:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames are {frames.dtype} {list(frames.shape)}, expected uint8 [F, H, W, 3]")
    if len({frames.shape for frames in videos}) > 1:
        shapes = " and ".join(str(list(frames.shape)) for frames in videos)
        raise ValueError(f"prediction and truth differ in shape: {shapes}")
