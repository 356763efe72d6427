"""Is it still the same person? Faces found and described by two small networks, compared by their cosine."""

from typing import Protocol

import numpy as np


class FaceNetwork(Protocol):
    """What finds and describes faces: see `evaluation.networks.FaceFiles`."""

    def describe(self, frame: np.ndarray) -> np.ndarray | None:
        """Return the description [D] of the largest face of a uint8 frame [H, W, 3], None without a face."""


def face_similarity(
    prediction: np.ndarray, reference: np.ndarray | list[np.ndarray], network: FaceNetwork
) -> np.ndarray:
    """Return float64 [F], the cosine in [-1, 1] of each frame's face and the reference's; 1 is best, no unit.

    `prediction` is uint8 [F, H, W, 3]; `reference` one image [H, W, 3], or one per frame (the truth's).
    CSIM's idea with SFace (arXiv:2205.12010): two images of one person usually pass 0.36. NaN for a frame in
    which no face is found, on either side: turned away, too small (below about 20 pixels) or broken, which is
    why the share of frames with a value belongs beside it. Of several faces the largest counts.
    """
    is_one = isinstance(reference, np.ndarray) and reference.ndim == 3
    expected = network.describe(reference) if is_one else None
    values = np.full(len(prediction), np.nan)
    if is_one and expected is None:
        return values
    for place, frame in enumerate(prediction):
        wanted = expected if is_one else network.describe(reference[place])
        found = network.describe(frame) if wanted is not None else None
        if found is not None:
            values[place] = _cosine(found, wanted)
    return values


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    first, second = (np.asarray(one, dtype=np.float64).ravel() for one in (first, second))
    return float(first @ second / max(np.linalg.norm(first) * np.linalg.norm(second), 1e-12))
