"""The largest person is followed through a piece, whoever passes by."""

from preparation.pose.people import Detection, largest_person


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
