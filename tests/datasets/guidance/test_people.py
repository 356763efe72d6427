"""One person stays one person: the largest is followed, whoever passes by, and what jumps is named."""

import json

import numpy as np
import pytest

from datasets import GuidanceDataset, read_pose_folder, write_report_page
from datasets.byte_cache import ByteCache
from datasets.guidance import key_points
from datasets.guidance.files import load_json
from datasets.guidance.openpose import flip_order
from datasets.guidance.people import (
    BODY,
    PEOPLE,
    SIDES,
    Detection,
    describe_frames,
    find_jumps,
    largest_person,
)
from datasets.guidance.tracks import open_track


def person(x, size, y=0.5, name=""):
    return Detection((x - size / 2, y - size / 2, x + size / 2, y + size / 2), details=name)


def names(track):
    return [None if detection is None else detection.details for detection in track]


def test_largest_is_followed_in_any_order_of_detections():
    frames = []
    for k in range(20):
        both = [person(0.3 + 0.01 * k, 0.4, name="large"), person(0.8, 0.25, name="small")]
        frames.append(both if k % 2 else both[::-1])
    assert names(largest_person(frames, 24)) == ["large"] * 20


def test_passer_by_close_to_the_camera_is_not_the_dancer():
    frames = [[person(0.5, 0.4, name="dancer")] for _ in range(40)]
    for k in range(5):
        frames[k].append(person(0.1 + 0.05 * k, 0.8, name="passer-by"))
    assert names(largest_person(frames, 24)) == ["dancer"] * 40


def test_nobody_else_is_taken_while_the_dancer_is_hidden():
    frames = [[person(0.3, 0.4, name="dancer"), person(0.8, 0.3, name="other")] for _ in range(20)]
    frames[8:12] = [[person(0.8, 0.3, name="other")]] * 4
    assert names(largest_person(frames, 24)) == ["dancer"] * 8 + [None] * 4 + ["dancer"] * 8


def test_a_lone_dancer_comes_back_elsewhere():
    frames = [[person(0.2, 0.3, name="a")]] * 10 + [[]] * 30 + [[person(0.8, 0.3, name="b")]] * 10
    assert names(largest_person(frames, 24)) == ["a"] * 10 + [None] * 30 + ["b"] * 10


def test_nobody():
    assert largest_person([[], []], 24) == [None, None]


# ---- jumps ----

STANDING = np.array([  # OpenPose's 18 body points, x and y in heads, facing the camera
    [0, 0.5], [0, 1.2], [-0.8, 1.2], [-1, 2.4], [-1, 3.5], [0.8, 1.2], [1, 2.4], [1, 3.5],
    [-0.5, 3.8], [-0.5, 5.5], [-0.5, 7.2], [0.5, 3.8], [0.5, 5.5], [0.5, 7.2],
    [-0.1, 0.4], [0.1, 0.4], [-0.3, 0.5], [0.3, 0.5],
])  # fmt: skip
SIZE, RATE, NUM_FRAMES = (480, 640), 24, 48


def dance(x=0.3, size=0.1, num_frames=NUM_FRAMES, num_points=18):
    """Points [N, K, 3] of somebody who sways and waves, one arm through a whole circle in a second."""
    seconds = np.arange(num_frames)[:, None] / RATE
    places = np.repeat(STANDING[None], num_frames, 0)
    places[..., 0] += 0.8 * np.sin(2 * np.pi * seconds)
    places[:, 4] = places[:, 3] + np.concatenate(
        [np.sin(2 * np.pi * seconds), np.cos(2 * np.pi * seconds)], 1
    )
    points = np.zeros((num_frames, num_points, 3), np.float32)
    points[:, :18, 0] = x + places[..., 0] * size * SIZE[0] / SIZE[1]
    points[:, :18, 1] = 0.1 + places[..., 1] * size
    points[:, :18, 2] = 0.9
    return points


def jumps_of(points, rate=RATE):
    return find_jumps(points, SIZE, np.arange(len(points)) / rate)


@pytest.mark.parametrize("num_points", [18, 134])
@pytest.mark.parametrize("rate", [24, 6])
def test_a_dance_is_quiet(num_points, rate):
    assert jumps_of(dance(num_points=num_points)[:: 24 // rate], rate) == {}


def test_jumps_are_named_with_their_frames():
    points, other = dance(), dance(0.6)
    frames = [12, 40, 41, 42, 43]
    points[frames] = other[frames]
    assert jumps_of(points) == {PEOPLE: frames}
    assert describe_frames(frames) == "12, 40-43"
    assert jumps_of(np.concatenate([dance()[:30], dance(0.6)[30:]])) == {PEOPLE: [30]}


def test_left_and_right_exchanged_are_named_the_fewer_frames():
    points = dance(num_points=134)
    for frames in ([12, 40, 41, 42, 43], list(range(30, 48)), list(range(0, 9))):
        exchanged = points.copy()
        exchanged[frames] = exchanged[frames][:, flip_order(134)]
        assert jumps_of(exchanged) == {SIDES: frames}


def test_a_point_that_no_body_could_move_so_far():
    points = dance()
    points[20:22, 7, :2] = 0.99, 0.01
    assert jumps_of(points) == {BODY: [20, 21]}
    points[20:22, 7, 2] = 0.1  # unsure: an estimator's word for any place
    assert jumps_of(points) == {}


def test_what_is_unknown_or_unseen_is_quiet():
    assert jumps_of(np.zeros((9, 134, 3))) == {} and jumps_of(dance()[:1]) == {}
    walked = np.concatenate([dance()[:10], np.zeros((24, 18, 3)), dance(0.45)[34:]])
    assert jumps_of(walked) == {}  # hidden for a second, and a metre and a half away: walked
    odd = dance()[:, :17]  # another order of points: no left and right, but a body
    assert jumps_of(odd) == {}
    odd[20] = dance(0.6)[20, :17]
    assert jumps_of(odd) == {PEOPLE: [20]}


def test_ranges_of_frames_are_limited():
    assert describe_frames(range(0, 100, 2)).endswith("20, 22 and 38 more")


# ---- OpenPose's files with several people ----


def as_person(points):
    """One of OpenPose's people, of 18 points in 0..1 of SIZE."""
    return {"pose_keypoints_2d": (points * [SIZE[1], SIZE[0], 1]).ravel().tolist()}


@pytest.fixture
def crowd(data_root):
    """The poses of dance_001: a dancer, somebody smaller, the two in any order, and once a third one."""
    folder = data_root / "poses" / "dance_001"
    dancer, other = dance(0.25, 0.1), dance(0.8, 0.06)
    for number, path in enumerate(sorted(folder.iterdir())):
        people = [as_person(dancer[number]), as_person(other[number])]
        if number == 7:
            people[0] = {}  # not found
        if number == 11:
            people = people[:1]
        if number == 13:
            people.insert(0, None)  # a tracked person who is not seen
        path.write_text(json.dumps({"people": people if number % 3 else people[::-1]}))
    dancer[7] = 0
    return folder, dancer[:24]


def test_one_of_openposes_people_is_followed(crowd, data_root, settings, check):
    """By training, sampling and the check alike."""
    folder, dancer = crowd
    sampled = read_pose_folder(folder, 18, frame_size=SIZE)
    np.testing.assert_allclose(sampled, dancer, atol=1e-6)
    meta = folder / "meta.json"
    meta.write_text('{"coordinates": "pixel"}')  # of the 64x64 video, outside of which these lie
    trained = GuidanceDataset(
        data_root, ["pose"], [18], resolution=64, sequence_length=24, skip_invalid=False
    )
    trained = trained._rows(trained._samples[0], trained._track(trained._samples[0], "pose"), range(24), 18)
    np.testing.assert_allclose(trained * [64 / SIZE[1], 64 / SIZE[0], 1], dancer, atol=1e-6)
    report = check(data_root, guidance_types=["pose"], guidance_input_channels=[18])
    assert report.samples["dance_001"]["pose"]["people"] == 2
    assert "pose: several people in 1 of 2 samples, of whom the largest is followed" in report.notes
    assert not any("jumps" in fault.problem for fault in report.faults)


def test_who_is_followed_is_found_out_once(crowd, data_root, monkeypatch):
    """Also where more is read than the cache holds: a clip then reads its own files alone."""
    dataset = GuidanceDataset(data_root, ["pose"], [18], resolution=64, sequence_length=4)
    dataset._cache, read = ByteCache(0), []
    dataset.read_clip(0)
    monkeypatch.setattr(key_points, "load_json", lambda path: read.append(path) or load_json(path))
    dataset.read_clip(0, 3)
    assert [path.name for path in read] == [f"frame_{frame:03d}.json" for frame in range(3, 7)]


def test_one_person_each_is_read_as_it_is(tmp_path):
    points = dance(num_frames=9)
    points[4:, :, 0] += 0.4  # alone, and elsewhere: read, and named by the check
    for number, one in enumerate(points):
        (tmp_path / f"{number}.json").write_text(json.dumps({"people": [as_person(one)]}))
    np.testing.assert_allclose(read_pose_folder(tmp_path, 18, frame_size=SIZE), points, atol=1e-6)
    assert open_track("pose", tmp_path).memo == {}


# ---- the check and its page ----


def write_points(data_root, points):
    for number, one in enumerate(points[:24]):
        path = data_root / "poses" / "dance_001" / f"frame_{number:03d}.json"
        path.write_text(json.dumps({"keypoints": one.tolist(), "coordinates": "normalized"}))


def planted(what):
    """A dance of 134 points, what it is with a fault, and the dance that following the advice gives."""
    right = dance(0.3, 0.1, num_points=134)
    right[..., :2] *= right[..., 2:] > 0
    wrong, mended = right.copy(), right
    if what == PEOPLE:
        wrong[[5, 12, 13]] = dance(0.7, 0.1, num_points=134)[[5, 12, 13]]
    elif what == SIDES:
        wrong[[5, 12, 13]] = wrong[[5, 12, 13]][:, flip_order(134)]
    else:
        wrong[[5, 12, 13], 7, :2] = 0.99, 0.01
        mended = right.copy()
        mended[[5, 12, 13], 7] = 0
    return wrong, mended


@pytest.mark.parametrize(
    ("what", "fix"),
    [
        (PEOPLE, "keep the key points of one person, or cut the video where another is seen"),
        (SIDES, "exchange left and right in these frames"),
        (BODY, "set the confidence of the wrong points in these frames to 0"),
    ],
)
def test_the_check_warns_and_shows_it_and_its_advice_helps(data_root, check, tmp_path, what, fix):
    wrong, mended = planted(what)
    write_points(data_root, wrong)
    report = check(data_root)
    (fault,) = report.faults
    assert (fault.severity, fault.problem, fault.fix) == ("warning", f"{what} in frames 5, 12-13", fix)
    assert report.samples["dance_001"]["pose"]["jumps"] == {what: [5, 12, 13]}
    write_report_page(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "where the pose jumps, the frames before and at it: 4, 5, 11, 12</div>" in page
    write_points(data_root, mended)
    assert check(data_root).ok
