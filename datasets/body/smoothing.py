"""Key points without the trembling of their tracker.

A curve of degree 2 is laid through the frames around each frame, and its value there taken (Savitzky and
Golay, Analytical Chemistry 36, 1964): unlike a mean, it keeps the height of a movement's turn, and so beats.
"""

import numpy as np

DEGREE = 2
WINDOW_SECONDS = 0.26  # 7 frames at 24 to 30 per second, 15 at 60: a movement takes as long at any rate
LEAST_WINDOW = 5  # frames; a curve of degree 2 goes through 3 as they are


def smooth_poses(key_points: np.ndarray, frame_rate: float) -> np.ndarray:
    """Return key points [F, K, 3] smoothed in time, each point by itself, as float32; confidence is kept.

    frame_rate: per second. A point is smoothed over the runs of frames in which it is present, never across a
    gap; runs of up to 4 frames stay as they are.
    """
    window = max(LEAST_WINDOW, 2 * round((WINDOW_SECONDS * frame_rate - 1) / 2) + 1)
    result = np.array(key_points, np.float32)
    for point in range(result.shape[1]):
        edges = np.diff(result[:, point, 2] > 0, prepend=False, append=False)
        for start, end in np.flatnonzero(edges).reshape(-1, 2):
            result[start:end, point, :2] = _smooth_run(key_points[start:end, point, :2], window)
    return result


def _smooth_run(places: np.ndarray, window: int) -> np.ndarray:
    """Return places [n, 2] on curves through the `window` frames about each; at the ends, the nearest."""
    window = min(window, len(places) - (len(places) + 1) % 2)  # an odd number
    if window < LEAST_WINDOW:
        return places
    half, places = window // 2, np.asarray(places, np.float64)
    powers = np.vander(np.arange(-half, half + 1), DEGREE + 1)
    onto_curve = powers @ np.linalg.pinv(powers)  # [window, window]: of a window's values, those of its curve
    inside = np.stack([np.convolve(axis, onto_curve[half], "valid") for axis in places.T], axis=-1)
    return np.concatenate(
        [onto_curve[:half] @ places[:window], inside, onto_curve[half + 1 :] @ places[-window:]]
    )
