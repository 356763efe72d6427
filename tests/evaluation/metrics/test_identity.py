"""Cosines of faces, and frames without one."""

import numpy as np
import pytest

from evaluation.metrics.identity import face_similarity


class Colours:
    """Takes a frame's mean colour for its face; black frames have none."""

    def describe(self, frame):
        colour = frame.reshape(-1, 3).mean(axis=0)
        return colour if colour.any() else None


def frame(*colour):
    return np.full((4, 4, 3), colour, np.uint8)


def test_cosines():
    prediction = np.stack([frame(9, 0, 0), frame(0, 9, 0), frame(9, 9, 0), frame(0, 0, 0)])
    found = face_similarity(prediction, frame(50, 0, 0), Colours())
    assert found == pytest.approx([1, 0, 0.5**0.5, np.nan], nan_ok=True)
    each = face_similarity(
        prediction, [frame(1, 0, 0), frame(0, 1, 0), frame(0, 0, 0), frame(1, 0, 0)], Colours()
    )
    assert each == pytest.approx([1, 1, np.nan, np.nan], nan_ok=True)


def test_a_reference_without_a_face():
    assert np.isnan(face_similarity(np.stack([frame(9, 0, 0)]), frame(0, 0, 0), Colours())).all()
