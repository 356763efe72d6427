"""A dance on another body: as that dancer would dance it, on its ground; no monsters."""

import dataclasses

import numpy as np
import pytest

from datasets.body.retargeting import fit_body, retarget
from datasets.guidance.openpose import OPENPOSE_COUNTS, flip_order
from demo.dancer import choreograph, key_points, standing
from demo.data import DemoScene
from system.errors import DataError

SQUARE = (128, 128)
FEET, LEGS = [10, 13], [9, 10, 12, 13]


def danced(dancer, scene):
    """Return the key points of a scene's dance by any dancer, and of the dancer standing."""
    generator = np.random.default_rng(7)
    postures = choreograph(dancer, scene.song, scene.frame_seconds, generator)
    points = np.stack([key_points(dancer, posture) for posture in postures])
    return points, key_points(dancer, standing(dancer))


@pytest.fixture
def pair():
    """A dance by a tall dancer with long arms and, as truth, by a small one; the small one standing."""
    scene = DemoScene(500_003)
    manner = {"centre": 0.5, "drift": 0.0, "reach": np.zeros(4), "sway": 0.02}
    tall = dataclasses.replace(
        scene.dancer, height=0.78, arm_length=0.32, shoulder_width=0.16, hip_width=0.12, **manner
    )
    small = dataclasses.replace(
        tall, height=0.5, arm_length=0.18, shoulder_width=0.13, hip_width=0.08, head_radius=0.06, centre=0.4
    )
    return [danced(tall, scene)[0], *danced(small, scene)]


def flip(points):
    points = points[..., flip_order(134), :]
    return np.where(points[..., 2:] > 0, points * [-1, 1, 1] + [1, 0, 0], 0)


def in_frame(points, size, scale=1.0, shift=(0.0, 0.0)):
    """Return points of a square frame as a camera with frames of another shape, further away, has them."""
    places = (points[..., :2] - 0.5) * scale + shift
    places[..., 0] *= size[0] / size[1]
    return np.concatenate([places + 0.5, points[..., 2:]], axis=-1)


def test_dance_is_that_of_the_other_dancer(pair):
    dance, truth, reference = pair
    found = retarget(dance, SQUARE, reference, SQUARE)
    there = (truth[..., 2] > 0) & (dance[..., 2] > 0)
    errors = np.linalg.norm((found - truth)[..., :2], axis=-1)[there] / 0.155  # torso lengths
    before = np.linalg.norm((dance - truth)[..., :2], axis=-1)[there] / 0.155
    assert before.mean() > 0.9
    assert errors.mean() < 0.1
    assert np.abs(found[:, FEET, 1].max(1) - 0.94).max() < 0.005  # stands on the ground, in each frame
    assert found.dtype == np.float32


@pytest.mark.parametrize("count", OPENPOSE_COUNTS)
def test_every_order_of_points(pair, count):
    dance, _, reference = pair
    whole = retarget(dance, SQUARE, reference[:18], SQUARE)
    found = retarget(dance[:, :count], SQUARE, reference, SQUARE)
    np.testing.assert_allclose(found[:, :14], whole[:, :14], atol=1e-6)  # a face scales eyes and ears, too


def test_camera_and_frame_of_the_driving_video_do_not_matter(pair):
    dance, _, reference = pair
    found = retarget(dance, SQUARE, reference, SQUARE)
    far = retarget(in_frame(dance, (720, 1280), 0.6, (0.2, 0.1)), (720, 1280), reference, SQUARE)
    np.testing.assert_allclose(far, found, atol=1e-5)
    upright = retarget(dance, SQUARE, in_frame(reference, (1280, 720)), (1280, 720))
    np.testing.assert_allclose(upright, in_frame(found, (1280, 720)), atol=1e-5)


def test_bones_keep_their_directions_and_both_sides_are_alike(pair):
    dance, _, reference = pair
    reference[3:5] = 0  # the reference's right arm is not seen: the left one tells
    found = retarget(dance, SQUARE, reference, SQUARE)
    for first, second in ((2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13), (13, 18)):
        there = (dance[:, [first, second], 2] > 0).all(1)
        old, new = ((points[:, second] - points[:, first])[there, :2] for points in (dance, found))
        across = old[:, 0] * new[:, 1] - old[:, 1] * new[:, 0]
        np.testing.assert_allclose(across, 0, atol=1e-6)
        assert ((old * new).sum(1) > 0).all()
    mirrored = retarget(flip(dance), SQUARE, flip(reference), SQUARE)
    np.testing.assert_allclose(mirrored, flip(found), atol=1e-5)


def test_face_is_moved_and_scaled_and_hands_follow_the_arms(pair):
    dance, _, reference = pair
    fit = fit_body(dance, SQUARE, reference, SQUARE)
    found = fit.apply(dance, SQUARE, SQUARE)
    for part, points in (("face", slice(24, 92)), ("arms", slice(92, 113))):
        there = (dance[:, points, 2] > 0).all(1)
        old, new = (track[there, points, :2] for track in (dance, found))
        shape = lambda places: places - places[:, :1]  # noqa: E731
        np.testing.assert_allclose(shape(new), fit.ratios[part] * shape(old), atol=1e-6)


def test_own_body_stays_where_it_is(pair):
    _, dance, reference = pair
    found = retarget(dance, SQUARE, reference, SQUARE)
    there = dance[..., 2] > 0
    assert np.abs(found - dance)[there].max() < 0.02


def test_absent_points_stay_absent_and_move_nothing_else(pair):
    dance, _, reference = pair
    dance = dance * [1, 1, 0.8]
    found = retarget(dance, SQUARE, reference, SQUARE)
    holes = dance.copy()
    for frame, points in ((3, [3]), (5, [0]), (8, [8]), (11, [2, 3]), (20, [8, 11])):
        holes[frame, points] = 0
    other = retarget(holes, SQUARE, reference, SQUARE)
    np.testing.assert_array_equal(other[..., 2], holes[..., 2].astype(np.float32))
    assert (other[holes[..., 2] == 0] == 0).all()
    assert np.abs(other - found)[holes[..., 2] > 0].max() < 0.03
    holes[12] = 0
    assert not retarget(holes, SQUARE, reference, SQUARE)[12].any()


def test_zoom_stays(pair):
    """One scale for the whole clip: a camera that comes nearer comes nearer to the other dancer, too."""
    dance, _, reference = pair
    zoom = np.linspace(1, 1.3, len(dance))[:, None, None]
    near = dance.copy()
    near[..., :2] = np.where(dance[..., 2:] > 0, (dance[..., :2] - [0.5, 0.94]) * zoom + [0.5, 0.94], 0)
    still, found = (fit_body(track, SQUARE, reference, SQUARE) for track in (dance, near))
    ratios = np.array([found.ratios[part] / still.ratios[part] for part in ("torso", "arms", "legs")])
    np.testing.assert_allclose(ratios, 1 / zoom.mean(), rtol=0.06)
    points = found.apply(near, SQUARE, SQUARE)
    torso = np.linalg.norm(points[:, 1, :2] - points[:, [8, 11], :2].mean(1), axis=-1)
    assert torso[-1] / torso[0] == pytest.approx(1.3, rel=0.01)


def test_arm_towards_the_camera_is_no_short_arm(pair):
    dance, _, reference = pair
    usual = fit_body(dance, SQUARE, reference, SQUARE).ratios
    for joint, nearer in ((3, 2), (4, 3), (6, 5), (7, 6)):
        reference[joint, :2] = reference[nearer, :2] + 0.3 * (reference[joint, :2] - reference[nearer, :2])
    found = fit_body(dance, SQUARE, reference, SQUARE).ratios
    assert found["arms"] == found["torso"] == usual["torso"]


def lying(points):
    points[:, :2] = points[:, 1::-1]


def sitting(points):
    """Thighs towards the camera."""
    for hip, knee, ankle in ((8, 9, 10), (11, 12, 13)):
        shift = 0.8 * (points[knee, :2] - points[hip, :2])
        points[[knee, ankle], :2] -= shift


def bending(points):
    """The upper body towards the camera."""
    middle = points[[8, 11], :2].mean(0)
    points[:8, :2] = middle + 0.4 * (points[:8, :2] - middle)


def without(*numbers):
    def change(points):
        points[list(numbers)] = 0

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lying, "the torso is not upright"),
        (bending, "the torso is not upright"),
        (sitting, "does not stand"),
        (without(8), "the neck or a hip is not seen"),
        (without(10, 13), "shows no leg down to the ankle"),
    ],
)
def test_reference_that_would_make_a_monster_is_refused(pair, change, problem):
    dance, _, reference = pair
    change(reference)
    with pytest.raises(DataError, match=f"^reference pose: .*{problem}.*--retarget none"):
        retarget(dance, SQUARE, reference, SQUARE)


def test_driving_poses_that_tell_no_size_are_refused(pair):
    dance, _, reference = pair
    for frame in dance:
        sitting(frame)
    with pytest.raises(DataError, match="^driving poses: the person does in no frame stand"):
        retarget(dance, SQUARE, reference, SQUARE)
    with pytest.raises(DataError, match="17 key points of unknown order"):
        retarget(dance[:, :17], SQUARE, reference, SQUARE)


def test_half_a_body_goes_onto_half_and_onto_a_whole_one(pair):
    dance, _, reference = pair
    whole = retarget(dance, SQUARE, reference, SQUARE)
    dance[:, LEGS] = dance[:, 18:24] = 0
    fit = fit_body(dance, SQUARE, reference, SQUARE)
    found = fit.apply(dance, SQUARE, SQUARE)
    assert fit.notes == ("the driving poses are of half a body: nothing drives the legs of the reference",)
    assert not found[:, LEGS].any()
    assert np.abs(found - whole)[:, :9].max() < 0.03
    reference[LEGS] = 0
    half = fit_body(dance, SQUARE, reference, SQUARE)
    assert half.notes == ()
    np.testing.assert_array_equal(half.apply(dance, SQUARE, SQUARE), found)
