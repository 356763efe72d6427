"""Scene changes are found, flashes and fast dancing are not taken for them, pieces have the right lengths."""

import numpy as np
import pytest

from preparation.scene_cuts import CutDetector, split_into_pieces


def cuts_of(frames) -> list[int]:
    detector = CutDetector()
    for frame in frames:
        detector.add(frame)
    return detector.cuts()


def scene(draw, num_frames, background, *, start=0.1):
    return [draw((96, 64), [(start + 0.02 * k, 0.4, 0.3)], background) for k in range(num_frames)]


def test_cuts_between_scenes(draw):
    frames = scene(draw, 15, (40, 80, 40)) + scene(draw, 10, (200, 200, 90)) + scene(draw, 12, (20, 20, 120))
    assert cuts_of(frames) == [15, 25]


@pytest.mark.parametrize("flash_frames", [1, 3])
def test_flash_is_no_cut(draw, flash_frames):
    frames = scene(draw, 20, (40, 80, 40))
    frames[10 : 10 + flash_frames] = [np.full_like(frames[0], 250)] * flash_frames
    assert cuts_of(frames) == []


def test_moving_dancer_and_changing_light_are_no_cuts(draw):
    generator = np.random.default_rng(0)
    frames = [
        draw((96, 64), [(*generator.uniform(0, 0.6, 2), 0.4)], tuple(np.array([60, 90, 60]) + 4 * k))
        for k in range(30)
    ]
    assert cuts_of(frames) == []


def test_pieces_are_scenes_of_limited_length():
    seconds = np.arange(100) / 10
    kept, too_short = split_into_pieces(seconds, 10.0, [55, 60], max_seconds=3, min_seconds=1)
    assert kept == [range(0, 28), range(28, 55), range(60, 80), range(80, 100)]
    assert too_short == [range(55, 60)]


def test_no_limit_and_uneven_rate():
    seconds = np.cumsum([0, *([0.1, 0.3] * 20)])  # 8 s
    assert split_into_pieces(seconds, 5.0, [], max_seconds=0, min_seconds=1)[0] == [range(0, 41)]
    kept, _ = split_into_pieces(seconds, 5.0, [], max_seconds=5, min_seconds=1)
    lengths = [seconds[piece.stop - 1] - seconds[piece.start] for piece in kept]
    assert sum(map(len, kept)) == 41 and len(kept) == 2 and max(lengths) <= 5
