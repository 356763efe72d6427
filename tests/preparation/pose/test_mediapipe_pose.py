"""MediaPipe's packaged models: the mapping of their landmarks, and what they find in a real picture."""

import importlib.util
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from datasets import VideoReader
from datasets.guidance.people import Detection
from preparation.pose.mediapipe_points import to_134_points
from preparation.pose.mediapipe_pose import MediaPipePose, without_doubles
from preparation.settings import Settings

needs_mediapipe = pytest.mark.skipif(
    importlib.util.find_spec("mediapipe") is None,
    reason="pip install --no-deps -r requirements-mediapipe.txt",
)


def test_landmarks_in_openpose_order():
    pose = np.column_stack([np.arange(33) / 100, np.full(33, 0.5), np.full(33, 0.8)])
    hand = np.column_stack([np.arange(21) / 100, np.full(21, 0.2), np.zeros(21)])
    points = to_134_points(pose, left_hand=hand)
    numbers = np.round(100 * points[:, 0], 3)
    # MediaPipe: 0 nose, 2 and 5 left and right eye, 7 and 8 ears, 11-16 arms and 23-28 legs (left first).
    assert numbers[:18].tolist() == [0, 11.5, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7]
    assert numbers[18:24].tolist() == [31, 0, 29, 32, 0, 30]  # no small toes
    assert not points[[19, 22]].any() and not points[24:92].any() and not points[113:].any()
    assert numbers[92:113].tolist() == list(range(21)) and (points[92:113, 2] == np.float32(0.8)).all()


def test_points_outside_the_frame_are_absent():
    pose = np.full((33, 3), 0.5)
    pose[16], pose[28] = [1.02, 0.5, 0.9], [0.5, -0.01, 0.9]  # right wrist, right ankle
    points = to_134_points(pose)
    assert not points[[4, 10]].any() and points[3].any()


def test_one_person_is_not_counted_twice():
    """The detector sees some people upside down as well, about the same hips."""

    def person(x, y, score):
        return Detection((x - 0.4, y - 0.4, x + 0.4, y + 0.4), score, SimpleNamespace(
            x_center=x, y_center=y, width=0.8, height=0.8))  # fmt: skip

    first, double, neighbour = person(0.5, 0.51, 0.9), person(0.5, 0.42, 0.6), person(0.75, 0.5, 0.7)
    assert without_doubles([double, neighbour, first]) == [first, neighbour]


@pytest.fixture(scope="module")
def estimator():
    return MediaPipePose(Settings())


@needs_mediapipe
def test_nobody_in_an_empty_picture(estimator):
    grey = np.full((120, 80, 3), 128, np.uint8)
    estimator.start_piece()
    assert estimator.find_people(grey) == [] and not estimator.key_points(grey, None).any()


@needs_mediapipe
def test_real_dancers_left_and_right(estimator, real_video):
    """Two copies of a dancer, the second smaller and mirrored: each has her own points, left is left."""
    frame = VideoReader(real_video).read([0])[0][::2, ::2]  # 960 x 540; the right arm is raised
    small = np.full_like(frame, 90)
    small[320:, 90:450] = cv2.resize(frame, (360, 640), interpolation=cv2.INTER_AREA)[:, ::-1]
    picture = np.ascontiguousarray(np.concatenate([frame, small], axis=1))
    people = sorted(estimator.find_people(picture), key=lambda person: person.box[0])
    assert len(people) == 2
    for person, turned, left_edge in zip(people, (False, True), (0.0, 0.5), strict=True):
        points = estimator.key_points(picture, person)
        body = points[:14]
        assert (body[:, 2] > 0).all() and ((body[:, 0] >= left_edge) & (body[:, 0] <= left_edge + 0.5)).all()
        right, left = points[2], points[5]  # shoulders; she faces the camera
        assert right[0] < left[0]
        raised, lowered = (7, 4) if turned else (4, 7)  # wrists
        assert points[raised, 1] < points[1, 1] < points[lowered, 1]
        eyes, ankles = points[[14, 15], 1].mean(), points[[10, 13], 1].mean()
        assert eyes < points[1, 1] < points[[8, 11], 1].mean() < ankles
        hand = points[113:] if not turned else points[92:113]
        if hand.any():
            assert np.abs(hand[0, :2] - points[raised, :2]).max() < 0.05


@needs_mediapipe
def test_a_piece_does_not_depend_on_the_frames_before_it(estimator, real_video):
    """MediaPipe's graph seeks hands and face where they were in the frame before."""
    earlier, frame = (np.ascontiguousarray(one[::4, ::4]) for one in VideoReader(real_video).read([0, 10]))
    (person,) = estimator.find_people(frame)
    estimator.start_piece()
    fresh = estimator.key_points(frame, person)
    estimator.key_points(earlier, person)
    assert (estimator.key_points(frame, person) != fresh).any()  # what is to be forgotten
    estimator.start_piece()
    assert np.array_equal(estimator.key_points(frame, person), fresh)
