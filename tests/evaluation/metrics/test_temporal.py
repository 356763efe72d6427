"""Flicker, jumps and seams are found where they are, and not where there are none."""

import cv2
import numpy as np
import pytest

from evaluation.metrics.temporal import background_flicker, dtssd, frame_jumps, seam_ratio


def dance(num_frames: int, size: int = 64, noise: float = 2.0) -> np.ndarray:
    """Return a ball that swings faster and slower over a still pattern, with a camera's noise."""
    rng = np.random.default_rng(0)
    stage = cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3), np.uint8), (0, 0), 2)
    frames = np.repeat(stage[None], num_frames, axis=0)
    for index, frame in enumerate(frames):
        place = size / 2 + size / 4 * np.sin(index / 7) * np.array([1, np.cos(index / 31)])
        cv2.circle(
            frame, (16 * place).round().astype(int).tolist(), 2 * size, (250, 200, 40), -1, cv2.LINE_AA, 4
        )
    return np.clip(frames + rng.normal(0, noise, frames.shape), 0, 255).astype(np.uint8)


def person(num_frames: int, size: int = 64) -> np.ndarray:
    """Return 18 key points of a small person in the middle of the frame: limbs of 6 pixels at most."""
    points = np.zeros((num_frames, 18, 3))
    points[:, :, :2] = size / 2 + np.random.default_rng(0).uniform(-2, 2, (18, 2))
    points[:, :, 2] = 1
    return points


# ---- differences in time ----


def test_dtssd_by_hand():
    truth, prediction = dance(3), dance(3, noise=9)
    changes = [np.diff(frames.astype(int), axis=0) for frames in (prediction, truth)]
    expected = np.sqrt(np.square(changes[0] - changes[1]).mean(axis=(1, 2, 3)))
    np.testing.assert_allclose(dtssd(prediction, truth), expected, rtol=0, atol=1e-6)
    black = np.zeros((2, 8, 8, 3), np.uint8)
    blinking = np.stack([~black[0], black[0]])
    assert dtssd(blinking, blinking[::-1]).tolist() == [510]


def test_frame_jumps_by_hand():
    frames = dance(4)
    expected = np.abs(np.diff(frames.astype(int), axis=0)).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(frame_jumps(frames), expected, rtol=0, atol=1e-6)


def test_truth_against_itself_is_best():
    assert dtssd(dance(5), dance(5)).tolist() == [0] * 4


def test_dtssd_rises_with_noise_blur_and_dropped_frames_but_not_with_colour():
    truth, rng = dance(24, noise=0), np.random.default_rng(1)
    noise = rng.normal(size=truth.shape)
    noisy = [np.clip(truth + 3 * amount * noise, 0, 255).astype(np.uint8) for amount in range(4)]
    blurred = [truth] + [
        np.stack([cv2.GaussianBlur(one, (0, 0), sigma) for one in truth]) for sigma in (1, 2, 4)
    ]
    held = [truth[np.arange(24) // stays * stays] for stays in (1, 2, 3, 4)]
    for videos in (noisy, blurred, held):
        assert (np.diff([dtssd(frames, truth).mean() for frames in videos]) > 0).all()
    darker = np.stack([cv2.convertScaleAbs(frame, alpha=0.5, beta=20) for frame in truth // 2 * 2])
    shifted = truth // 2 + np.array([0, 20, 40], np.uint8)
    assert dtssd(shifted, truth // 2).max() == 0 and dtssd(darker, truth).mean() > 0


def test_one_wrong_frame_in_a_hundred_is_found():
    truth = dance(100)
    prediction = dance(100, noise=4)
    prediction[61] = prediction[61, ::-1]
    curve, jumps = dtssd(prediction, truth), frame_jumps(prediction)
    assert set(np.argsort(curve)[-2:]) == set(np.argsort(jumps)[-2:]) == {60, 61}
    assert curve[60:62].min() > 5 * np.median(curve) and jumps[60:62].min() > 2 * np.median(jumps)


def test_chunks_that_share_a_frame_give_the_same():
    truth, prediction = dance(9), dance(9, noise=5)
    points = person(9)
    parts = [slice(0, 4), slice(3, 7), slice(6, 9)]
    videos = {
        dtssd: (prediction, truth),
        frame_jumps: (prediction,),
        background_flicker: (prediction, points),
    }
    for metric, arrays in videos.items():
        chunks = [metric(*(array[part] for array in arrays)) for part in parts]
        assert np.concatenate(chunks).tolist() == metric(*arrays).tolist()
        assert metric(*(array[:1] for array in arrays)).shape == (0,)


# ---- background ----


def test_background_flicker_is_that_beside_the_person():
    still = np.repeat(dance(1), 3, axis=0)
    person_changes, stage_changes = still.copy(), still.copy()
    person_changes[1, 30:34, 30:34] ^= 128
    stage_changes[1, :10] ^= 4
    assert background_flicker(person_changes, person(3)).tolist() == [0, 0]
    found = background_flicker(stage_changes, person(3))
    assert found[0] == found[1] > 4 * 10 / 64  # of the frame without the person


def test_background_flicker_rises_with_noise():
    values = [background_flicker(dance(6, noise=noise), person(6)).mean() for noise in (0, 1, 2, 4, 8)]
    assert (np.diff(values) > 0).all()


def test_the_person_of_both_frames_is_left_out():
    """Who walks uncovers the stage behind: no flicker."""
    stage, points = np.repeat(dance(1, noise=0), 2, axis=0), person(2)
    points[1, :, 0] += 20
    frames = stage.copy()
    for frame, place in zip(frames, (32, 52), strict=True):
        frame[30:35, place - 2 : place + 3] = 255
    assert background_flicker(frames, points).tolist() == [0]


def test_radius_is_half_of_the_longest_limb():
    """Shoulders 20 pixels apart from the neck: a change 9 pixels above is the person's, 12 above is not."""
    points = np.zeros((2, 18, 3))
    points[:, [1, 2, 5]] = [(32, 32, 1), (12, 32, 1), (52, 32, 1)]
    for rows, is_seen in ((slice(23, 24), False), (slice(19, 20), True)):
        frames = np.zeros((2, 64, 64, 3), np.uint8)
        frames[1, rows, 32] = 255
        assert (background_flicker(frames, points)[0] > 0) == is_seen


def test_of_an_unknown_order_the_hull_is_left_out():
    points = np.zeros((2, 7, 3))
    points[:, :3] = [(20, 20, 1), (44, 20, 1), (32, 44, 1)]
    inside, outside = np.zeros((2, 2, 64, 64, 3), np.uint8)
    inside[1, 28, 32] = outside[1, 60, 4] = 255
    assert background_flicker(inside, points)[0] == 0 < background_flicker(outside, points)[0]


def test_without_a_person_or_a_background_there_is_no_value():
    frames, points = dance(6), person(6)
    points[1, :, 2] = 0
    points[4] = np.nan
    assert np.isnan(background_flicker(frames, points)).tolist() == [True, True, False, True, True]
    points = person(6)
    points[:, 1], points[:, 8] = (1e9, -1e9, 1), (-1e9, 1e9, 1)  # fills the frame
    assert np.isnan(background_flicker(frames, points)).all()


# ---- seams ----


def with_cuts(frames: np.ndarray, borders: list[int]) -> np.ndarray:
    """Return the video with every other window mirrored: a hard cut at each border."""
    frames = frames.copy()
    for start, end in zip(borders[::2], [*borders[1::2], len(frames)], strict=False):
        frames[start:end] = frames[start:end, :, ::-1]
    return frames


@pytest.mark.parametrize("stride", [8, 12, 20, 40])
def test_hard_cuts_between_windows_are_seams_and_none_are_none(stride):
    frames, borders = dance(200), list(range(0, 200, stride))
    ratio, num_borders = seam_ratio(frame_jumps(frames), borders)
    assert ratio == pytest.approx(1, abs=0.1) and num_borders == len(borders) - 1
    ratio, num_borders = seam_ratio(frame_jumps(with_cuts(frames, borders[1:])), borders)
    assert ratio > 3 and num_borders == len(borders) - 1


def test_a_dance_that_stops_and_starts_has_no_seams():
    """The rhythm cancels: windows that begin where the dance is fast are no seams."""
    pace = 1.5 + np.sin(np.arange(240) * 2 * np.pi / 24)
    borders = range(6, 240, 24)  # at the fastest
    jumps = pace * np.random.default_rng(0).normal(1, 0.02, 240)
    assert np.median(jumps[5::24]) > 1.5 * np.median(jumps)
    assert seam_ratio(jumps, borders)[0] == pytest.approx(1, abs=0.1)


def test_seam_ratio_by_hand():
    jumps = np.array([1, 1, 1, 4, 1, 1, 1, 6, 1, 1.0])
    assert seam_ratio(jumps, [4, 8]) == (5, 2)
    assert seam_ratio(jumps, [0, 4, 4, 8, 11, 300]) == (5, 2)  # no frame before, twice, after the end


def test_a_still_video_has_no_seams_and_a_cut_in_it_is_one():
    assert seam_ratio(np.zeros(40), [10, 20]) == (1, 2)
    assert seam_ratio(np.where(np.arange(40) == 9, 5.0, 0), [10]) == (500, 1)


def test_without_borders_there_is_no_ratio():
    for jumps, borders in (
        (np.ones(9), []),
        (np.ones(9), [0, 10]),
        (np.full(9, np.nan), [4]),
        (np.ones(0), [1]),
    ):
        ratio, num_borders = seam_ratio(jumps, borders)
        assert np.isnan(ratio) and num_borders == 0


def test_other_frames_are_refused():
    with pytest.raises(ValueError, match="expected uint8"):
        frame_jumps(dance(2) / 255)
    with pytest.raises(ValueError, match="key points of 3 frames, expected 2"):
        background_flicker(dance(2), person(3))
    with pytest.raises(ValueError, match="differ in shape"):
        dtssd(dance(2), dance(3))
