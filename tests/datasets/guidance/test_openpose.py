"""Left and right of the 134 points."""

import numpy as np
import pytest

from datasets.guidance.openpose import flip_order


def test_sides_of_the_body_are_exchanged():
    order = flip_order(134)
    pairs = {
        "shoulders": (2, 5), "wrists": (4, 7), "hips": (8, 11), "ankles": (10, 13), "eyes": (14, 15),
        "ears": (16, 17), "big toes": (18, 21), "heels": (20, 23), "ends of the jaw": (24, 40),
        "outer brows": (41, 50), "outer eye corners": (24 + 36, 24 + 45), "mouth corners": (24 + 48, 24 + 54),
        "wrists of the hands": (92, 113), "tips of the little fingers": (112, 133),
    }  # fmt: skip
    for name, (right, left) in pairs.items():
        assert order[right] == left and order[left] == right, name
    for middle in (0, 1, 24 + 8, 24 + 27, 24 + 30, 24 + 33, 24 + 51, 24 + 57, 24 + 62, 24 + 66):
        assert order[middle] == middle


@pytest.mark.parametrize("num_points", [18, 24, 92, 134])
def test_twice_flipped_is_unflipped(num_points):
    order = np.array(flip_order(num_points))
    assert sorted(order) == list(range(num_points)) and (order[order] == np.arange(num_points)).all()


def test_unknown_orders_have_no_sides():
    with pytest.raises(ValueError, match="17 key points"):
        flip_order(17)


def test_a_real_face_stays_a_face(real_data_root):
    """Flipped points of a symmetric thing, as a face seen from the front nearly is, lie where they were."""
    from datasets import read_pose_folder

    points = read_pose_folder(real_data_root / "poses" / "dance_001", 134)
    face = points[(points[:, 24:92, 2] > 0).all(1)][:, 24:92, :2]
    order = np.array(flip_order(134))[24:92] - 24
    face = face - face.mean(1, keepdims=True)
    flipped = face[:, order] * (-1, 1)
    error = np.linalg.norm(flipped - face, axis=-1).mean(1) / face.std((1, 2))
    wrong = np.linalg.norm(face * (-1, 1) - face, axis=-1).mean(1) / face.std((1, 2))
    assert np.median(error) < 0.25 * np.median(wrong)
