"""PSNR, SSIM and L1 are scikit-image's or worked out by hand; the published forms are DisCo's formulas."""

import cv2
import numpy as np
import pytest

from evaluation.metrics import pixels

METRICS = {
    "psnr": (pixels.psnr, 100.0),
    "ssim": (pixels.ssim, 1.0),
    "l1": (pixels.l1, 0.0),
    "psnr_legacy": (pixels.psnr_legacy, 100.0),
    "ssim_legacy": (pixels.ssim_legacy, 1.0),
    "l1_legacy": (pixels.l1_legacy, 0.0),
}  # with the best value
HIGHER_IS_BETTER = {"psnr", "ssim", "ssim_legacy"}


def video(num_frames: int = 4, height: int = 40, width: int = 48) -> np.ndarray:
    """Return frames of every kind: coarse, fine, noisy and flat."""
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (num_frames, height, width, 3), np.uint8)
    frames = np.stack([cv2.GaussianBlur(frame, (0, 0), 0.6 + index) for index, frame in enumerate(noise)])
    frames[:, : height // 4] = (37, 90, 200)
    frames[0, height // 2 :] = noise[0, height // 2 :]
    return frames


def worse(frames: np.ndarray, kind: str, amount: int) -> np.ndarray:
    """Return frames that are worse in one way: amount 0 (as they are) to 4."""
    if kind == "blur":
        return np.stack([cv2.GaussianBlur(frame, (0, 0), amount) for frame in frames]) if amount else frames
    if kind == "noise":
        noise = np.random.default_rng(0).normal(size=frames.shape)
        return np.clip(frames + 5 * amount * noise, 0, 255).astype(np.uint8)
    if kind == "colour":
        return np.clip(frames + np.array([-7 * amount, 0, 6 * amount]), 0, 255).astype(np.uint8)
    return frames[np.arange(len(frames)) // (amount + 1) * (amount + 1)]  # each frame stays for longer


def spoiled(frames: np.ndarray) -> np.ndarray:
    frames = worse(worse(frames, "noise", 2), "colour", 1)
    frames[:, :10] = (40, 88, 190)
    return frames


@pytest.fixture(scope="module")
def pair():
    truth = video()
    return spoiled(truth), truth


@pytest.fixture(scope="module")
def oracle():
    return pytest.importorskip("skimage.metrics", reason="pip install -r requirements-dev.txt")


def test_psnr_is_scikit_images(pair, oracle):
    expected = [
        oracle.peak_signal_noise_ratio(true, one, data_range=255) for one, true in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(pixels.psnr(*pair), expected, rtol=0, atol=1e-6)


def test_ssim_is_scikit_images_with_gaussian_windows(pair, oracle):
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    expected = [
        oracle.structural_similarity(*frames, channel_axis=-1, **wang) for frames in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(pixels.ssim(*pair), expected, rtol=0, atol=1e-6)


def test_ssim_legacy_is_scikit_images_default_of_grey_frames(pair, oracle):
    grey = [[cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames] for frames in pair]
    expected = [
        oracle.structural_similarity(one, true, full=True)[0] for one, true in zip(*grey, strict=True)
    ]
    np.testing.assert_allclose(pixels.ssim_legacy(*pair), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(11, 11), (11, 64), (73, 12), (300, 91)])
def test_ssim_of_frames_just_as_large_as_a_window(size, oracle):
    truth = video(1, *size)
    prediction = spoiled(truth)
    wang = {"gaussian_weights": True, "use_sample_covariance": False, "channel_axis": -1}
    assert pixels.ssim(prediction, truth)[0] == pytest.approx(
        oracle.structural_similarity(prediction[0], truth[0], **wang), abs=1e-6
    )


def test_ssim_of_two_flat_frames_by_hand():
    """No structure to lose: the luminance's term alone is left, (2 a b + C1) / (a^2 + b^2 + C1)."""
    first, second = (np.full((1, 16, 16, 3), level, np.uint8) for level in (100, 37))
    constant = (0.01 * 255) ** 2
    expected = (2 * 100 * 37 + constant) / (100**2 + 37**2 + constant)
    assert pixels.ssim(first, second)[0] == pytest.approx(expected, abs=1e-9)


def test_l1_by_hand(pair):
    prediction, truth = (frames.astype(int) for frames in pair)
    expected = [
        sum(map(abs, (one - true).ravel().tolist())) / true.size
        for one, true in zip(prediction, truth, strict=True)
    ]
    np.testing.assert_allclose(pixels.l1(*pair), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(pixels.l1_legacy(*pair), np.array(expected) / (40 * 48), rtol=1e-12)


def test_legacy_psnr_overflows_as_8_bits_do(pair):
    """Difference and square modulo 256, each pixel of its own in Python's integers."""
    for one, true, found in zip(*pair, pixels.psnr_legacy(*pair), strict=True):
        differences = zip(one.ravel().tolist(), true.ravel().tolist(), strict=True)
        squares = [((a - b) % 256) ** 2 % 256 for a, b in differences]
        error = sum(squares) / len(squares)
        assert found == pytest.approx(20 * np.log10(255 / np.sqrt(error)), abs=1e-9)


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (0, 100.0),
        (15, 20 * np.log10(255 / 15)),
        (16, 100.0),
        (17, 20 * np.log10(255 / np.sqrt(33))),
        (240, 100.0),
    ],
)
def test_legacy_psnr_of_a_constant_difference(difference, expected):
    truth = np.zeros((1, 8, 8, 3), np.uint8)
    assert pixels.psnr_legacy(truth + np.uint8(difference), truth)[0] == pytest.approx(expected)
    assert pixels.psnr_legacy(truth, truth + np.uint8(difference))[0] == pytest.approx(expected)


def test_legacy_psnr_calls_noise_good():
    """What a published 29 dB may be worth."""
    first, second = np.random.default_rng(0).integers(0, 256, (2, 1, 64, 64, 3), np.uint8)
    assert pixels.psnr(first, second)[0] < 8 and pixels.psnr_legacy(first, second)[0] > 27


@pytest.mark.parametrize("name", METRICS)
def test_truth_against_itself_is_best(name):
    metric, best = METRICS[name]
    assert metric(video(), video()).tolist() == [best] * 4


def test_nothing_is_better_than_identical():
    truth = np.zeros((1, 512, 512, 3), np.uint8)
    almost = truth.copy()
    almost[0, 0, 0, 0] = 1  # 107 dB by the formula
    assert pixels.psnr(almost, truth)[0] == 100


WORSE = ("blur", "noise", "colour", "frame drop")
SEEN = [
    (name, kind) for name in ("psnr", "ssim", "l1", "ssim_legacy", "l1_legacy") for kind in WORSE
    if (name, kind) != ("ssim_legacy", "colour")  # grey: see below
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), SEEN)
def test_quality_falls_monotonically(name, kind):
    truth, metric = video(12), METRICS[name][0]
    values = [metric(worse(truth, kind, amount), truth).mean() for amount in range(5)]
    falls = np.diff(values) < 0 if name in HIGHER_IS_BETTER else np.diff(values) > 0
    assert falls.all(), values


def test_ssim_of_grey_frames_is_blind_to_colours():
    truth = np.full((1, 16, 16, 3), (100, 100, 100), np.uint8)
    greener = np.full((1, 16, 16, 3), (60, 124, 80), np.uint8)  # as bright, within a level
    assert pixels.ssim_legacy(greener, truth)[0] > 0.999 > 0.95 > pixels.ssim(greener, truth)[0]


def test_one_wrong_frame_in_a_hundred_is_found():
    truth = np.repeat(video(1), 100, axis=0)
    prediction = worse(truth, "noise", 1)
    prediction[61] = prediction[61, ::-1]
    for name in ("psnr", "ssim", "l1", "ssim_legacy"):
        curve = METRICS[name][0](prediction, truth)
        place = curve.argmin() if name in HIGHER_IS_BETTER else curve.argmax()
        others = np.delete(curve, 61)
        assert place == 61 and abs(curve[61] - np.median(others)) > 20 * others.std()


@pytest.mark.parametrize("name", METRICS)
def test_chunks_do_not_matter(pair, name):
    metric = METRICS[name][0]
    chunks = [metric(*(frames[part] for frames in pair)) for part in (slice(0, 3), slice(3, 4), slice(4, 4))]
    assert np.concatenate(chunks).tolist() == metric(*pair).tolist()
    assert chunks[0].dtype == np.float64 and chunks[2].shape == (0,)


def test_sums_of_large_frames_are_exact():
    black = np.zeros((1, 2160, 3840, 3), np.uint8)
    white = ~black
    assert pixels.psnr(white, black)[0] == 0 and pixels.l1(white, black)[0] == 255


# ---- hands and face ----


def points_at(num_frames: int, num_points: int = 134) -> np.ndarray:
    """Return key points whose face, left and right hand are squares of 10 pixels, elsewhere in 96 x 96."""
    rng = np.random.default_rng(0)
    points = np.zeros((num_frames, num_points, 3))
    for part, left, top in ((slice(24, 92), 40, 10), (slice(92, 113), 70, 50), (slice(113, 134), 10, 50)):
        shape = points[:, part, :2].shape
        points[:, part, :2] = rng.uniform(0, 10, shape)
        points[:, part][:, :2, :2] = (0, 0), (10, 10)
        points[:, part, :2] += (left, top)
        points[:, part, 2] = 1
    return points


def test_parts_are_measured_in_their_boxes():
    truth = video(1, 96, 96)
    prediction = truth.copy()
    prediction[0, 8:22, 38:52] ^= 8  # the face's square and a fifth of it all around
    face, hands = (part(prediction, truth, points_at(1)) for part in (pixels.face_psnr, pixels.hand_psnr))
    assert face[0] == pytest.approx(20 * np.log10(255 / 8)) and hands[0] == 100
    prediction = truth.copy()
    prediction[0, 48:62, 68:82] ^= 8  # one hand of two: half the squared error
    face, hands = (part(prediction, truth, points_at(1)) for part in (pixels.face_psnr, pixels.hand_psnr))
    assert hands[0] == pytest.approx(10 * np.log10(255**2 / 32)) and face[0] == 100


def test_a_part_sees_what_happens_in_it_only():
    truth, points = video(2, 96, 96), points_at(2)
    blurred = [worse(truth, "blur", amount) for amount in range(4)]
    elsewhere = np.stack([frames.copy() for frames in blurred])
    elsewhere[:, :, 8:22, 38:52] = truth[:, 8:22, 38:52]
    assert (np.diff([pixels.face_psnr(frames, truth, points).mean() for frames in blurred]) < 0).all()
    assert all((pixels.face_psnr(frames, truth, points) == 100).all() for frames in elsewhere)
    assert (np.diff([pixels.hand_psnr(frames, truth, points).mean() for frames in elsewhere]) < 0).all()


def test_what_is_not_visible_has_no_value():
    truth, points = video(7, 96, 96), points_at(7)
    points[1, 92:134, 2] = 0.2  # not sure
    points[2, 92:113, 2] = 0  # one hand: of the other alone
    points[3, 92:134] = np.nan
    points[4, 92:134, 0] += 200  # outside the frame
    points[5, 96:113, 2] = points[5, 117:134, 2] = 0  # four points each
    points[6, 92:134, 0] -= 74  # one hand at the frame's edge, one outside
    found = pixels.hand_psnr(truth, truth, points)
    np.testing.assert_array_equal(found, [100, np.nan, 100, np.nan, np.nan, np.nan, 100])
    assert np.isfinite(pixels.face_psnr(truth, truth, points)).all()


@pytest.mark.parametrize(
    ("num_points", "has_face"), [(18, False), (24, False), (92, True), (33, False), (133, False)]
)
def test_only_layouts_with_hands_and_face_have_them(num_points, has_face):
    truth, points = video(1, 96, 96), points_at(1)[:, :num_points]
    assert np.isfinite(pixels.face_psnr(truth, truth, points)).all() == has_face
    assert np.isnan(pixels.hand_psnr(truth, truth, points)).all()


# ---- what is refused ----


def test_other_shapes_and_types_are_refused():
    truth = video()
    with pytest.raises(ValueError, match=r"differ in shape: \[3, .* and \[4, "):
        pixels.psnr(truth[:3], truth)
    with pytest.raises(ValueError, match=r"float64 .* expected uint8 \[F, H, W, 3\]"):
        pixels.l1(truth / 255, truth)
    with pytest.raises(ValueError, match="48 x 10 are smaller than SSIM's window, 11"):
        pixels.ssim(truth[:, :10], truth[:, :10])
