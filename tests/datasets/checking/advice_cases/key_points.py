"""What a pose file says: keys, numbers of points, units, places."""

import json

import numpy as np

from datasets.guidance.key_point_check import SAME_UNITS
from datasets.guidance.key_points import COCO_FIX
from preparation.pose import dwpose

from .planting import (
    ABSENT,
    ANOTHER,
    SCALE,
    change_poses,
    folder_of,
    one_file,
    other_content,
    scaled,
    with_value,
)


def no_known_key(root):
    path = folder_of(root, "poses") / "frame_003.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"points": content["keypoints"]}))
    yield 'write {"keypoints": [[x, y, confidence], ...]}'
    path.write_text(json.dumps({"keypoints": json.loads(path.read_text())["points"]}))


def flat_key_points(root):
    path = folder_of(root, "poses") / "frame_003.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"keypoints": np.ravel(content["keypoints"]).tolist()}))
    yield "write one [x, y, confidence] per point"
    flat = json.loads(path.read_text())["keypoints"]
    path.write_text(json.dumps({"keypoints": np.reshape(flat, (-1, 3)).tolist()}))


def another_frame_id(root):
    path = folder_of(root, "poses") / "frame_005.json"
    path.write_text(path.read_text().replace('"frame_id": 5', '"frame_id": 4'))
    yield "make them agree"
    path.write_text(path.read_text().replace('"frame_id": 4', '"frame_id": 5'))


def fewer_points_in_one(root):
    content = json.dumps({"keypoints": [[0.5, 0.5, 1]] * 18})
    fix = "if all pose files have 18, set pose's --guidance_input_channels to 18, else detect them again"
    yield from other_content(folder_of(root, "poses") / "frame_003.json", content, fix)


def points_of_coco(root):
    path, rows = one_file(root, "pose")
    coco = np.zeros((len(rows), 133, 3), np.float32)
    coco[:, list(dwpose.BODY.values())] = rows[:, list(dwpose.BODY)]
    coco[:, 17:] = rows[:, 18:]
    np.save(path, coco)
    channels = "set pose's --guidance_input_channels to 133, else detect them again"
    yield f"{COCO_FIX}; or, if all pose files have 133, {channels}"
    written = np.stack([dwpose.to_134_points(row) for row in coco])
    np.testing.assert_array_equal(np.delete(written, dwpose.NECK, 1), np.delete(rows, dwpose.NECK, 1))
    np.save(path, written)
    yield ANOTHER  # the neck is between the shoulders


def fewer_points_in_all(root):
    for sample_id in ("dance_001", "dance_002"):
        path, rows = one_file(root, "pose", sample_id)
        np.save(path, rows[:, :18])
    yield "if all pose files have 18, set pose's --guidance_input_channels to 18, else detect them again"
    yield ANOTHER | {"guidance_input_channels": [5, 18]}


def openpose_with_odd_numbers(root):
    content = json.dumps({"people": [{"pose_keypoints_2d": [0.5] * 17 * 3}]})
    fix = "write x, y and confidence of each of 18 or 25 points"
    yield from other_content(folder_of(root, "poses") / "frame_003.json", content, fix)


def openpose_for_other_numbers(root):
    for path in root.glob("poses/*/*.json"):
        number = int(path.stem[-3:])
        body = np.tile([number / 100, 0.5, 0.9], 18).tolist()
        path.write_text(json.dumps({"people": [{"pose_keypoints_2d": body}]}))
    yield (
        "set the type's --guidance_input_channels to one of (18, 24, 92, 134)",
        {"guidance_input_channels": [5, 133]},
    )
    yield ANOTHER | {"guidance_input_channels": [5, 18]}


def no_list_of_people(root):
    path = folder_of(root, "poses") / "frame_003.json"
    yield from other_content(path, '{"people": 3}', "write it again with OpenPose")


def points_without_numbers(root):
    change_poses(root, with_value((3, 0), np.nan), [7])
    yield "write absent points as [0, 0, 0]"
    change_poses(root, with_value(3, 0), [7])
    yield ANOTHER


def unknown_units(root):
    change_poses(root, scaled(1), coordinates="percent")
    yield 'write "normalized" or "pixel"'
    change_poses(root, scaled(1), coordinates="normalized")


def two_stated_units(root):
    """Some files are in pixels, and say so: the same word in all of them would be wrong."""
    change_poses(root, scaled(64), range(12), coordinates="pixel")
    change_poses(root, scaled(1), range(12, 24), coordinates="normalized")
    yield SAME_UNITS
    change_poses(root, scaled(1 / 64), range(12), coordinates="normalized")


def units_mixed(root):
    change_poses(root, scaled(64), range(20, 24))
    yield SAME_UNITS
    change_poses(root, scaled(1 / 64), range(20, 24))
    change_poses(root, scaled(1), coordinates="normalized")


def units_mixed_in_one_file(root):
    path, rows = one_file(root, "pose")
    rows[20:, :, :2] *= 64
    np.save(path, rows)
    yield "write all rows in the same units, and state those in a meta.json beside the file"
    rows[20:, :, :2] /= 64
    np.save(path, rows)
    path.with_name("meta.json").write_text('{"coordinates": "normalized"}')


def wrong_units_stated(root):
    change_poses(root, scaled(1), coordinates="pixel")
    yield SAME_UNITS
    change_poses(root, scaled(1), coordinates="normalized")


def a_hand_outside(root):
    change_poses(root, with_value((133, 0), 1.4), [6])
    yield ABSENT
    change_poses(root, with_value((133, 2), 0), [6])
    yield ANOTHER


def from_the_middle(root):
    change_poses(root, lambda points: points * [2, 2, 1] - [1, 1, 0])
    yield f"if they are in -1..1, write (x + 1) / 2 and (y + 1) / 2, else {ABSENT}"
    change_poses(root, lambda points: (points + [1, 1, 0]) / [2, 2, 1])


def pixels_of_a_larger_video(root):
    change_poses(root, scaled(640))
    yield f"they reach 147x320 pixels, the video is 64x64{SCALE}{ABSENT}"
    change_poses(root, scaled(64 / 640))


def one_point_outside_in_pixels(root):
    change_poses(root, scaled(64))
    change_poses(root, with_value((133, 0), 99), [6])
    yield f"they reach 99x32 pixels, the video is 64x64{SCALE}{ABSENT}"
    change_poses(root, with_value((133, 2), 0), [6])
    yield ANOTHER


def nobody(root):
    before = {path: path.read_text() for path in folder_of(root, "poses").iterdir()}
    change_poses(root, lambda points: points * 0)
    yield "detect the poses again, or remove the video"
    for path, content in before.items():
        path.write_text(content)


def nobody_for_long(root):
    before = {path: path.read_text() for path in folder_of(root, "poses").iterdir()}
    change_poses(root, lambda points: points * 0, range(18))
    yield "look whether the person is seen; detect the poses again, or cut the video"
    for path, content in before.items():
        path.write_text(content)
