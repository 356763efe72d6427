"""The reference is the sharpest frame with the whole body."""

import cv2
import numpy as np

from preparation.reference_image import better, rate_frame


def body(num_seen=14):
    points = np.zeros((134, 3))
    points[:num_seen] = [[0.2 + 0.04 * k, 0.2 + 0.04 * k, 0.9] for k in range(num_seen)]
    return points


def choose(frames, points):
    best = None
    for number, (frame, of_frame) in enumerate(zip(frames, points, strict=True)):
        best = better(rate_frame(number, frame, of_frame), best)
    return best


def test_sharpest_person_wins_whatever_the_background():
    generator = np.random.default_rng(0)
    sharp = generator.integers(0, 255, (100, 100, 3)).astype(np.uint8)
    blurred = cv2.GaussianBlur(sharp, (9, 9), 3)
    sharp_background = blurred.copy()
    sharp_background[:15] = sharp_background[-15:] = generator.integers(0, 2, (15, 100, 3)) * 255
    assert choose([blurred, sharp, sharp_background], [body()] * 3).frame == 1
    assert choose([blurred, sharp_background], [body()] * 2).frame == 0  # equals: the earlier


def test_whole_body_comes_before_sharpness():
    generator = np.random.default_rng(0)
    sharp = generator.integers(0, 255, (100, 100, 3)).astype(np.uint8)
    chosen = choose([sharp, cv2.GaussianBlur(sharp, (9, 9), 3)], [body(10), body(14)])
    assert chosen.frame == 1 and chosen.describe() == ""


def test_it_says_when_the_whole_body_is_never_seen():
    chosen = choose([np.zeros((50, 50, 3), np.uint8)] * 2, [body(3), body(8)])
    assert chosen.frame == 1
    assert "no frame shows the whole body" in chosen.describe() and "8 of 14" in chosen.describe()
