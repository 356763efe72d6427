"""Values of music and maps, lengths and copies of videos."""

import json
import shutil

import numpy as np
from PIL import Image

from datasets import write_video
from demo.dancer import key_points, standing
from demo.data import DemoScene

from .planting import ANOTHER, change_poses, folder_of, with_maps


def depth_of(channels):
    """Return the settings of a check with maps of so many channels."""
    return {"guidance_types": ["music", "pose", "depth"], "guidance_input_channels": [5, 134, channels]}


def music_that_never_changes(root):
    before = {path: np.load(path) for path in folder_of(root, "music_features").iterdir()}
    for path in before:
        np.save(path, np.ones(5))
    yield "extract the features again"
    for path, row in before.items():
        np.save(path, row)


def image_of_another_body(root):
    scene = DemoScene(0, num_frames=24)
    poses = scene.key_points()
    for number, points in enumerate(poses):
        change_poses(root, lambda _, points=points: points, [number])
    legs = [9, 10, 12, 13]
    child = key_points(scene.dancer, standing(scene.dancer))
    child[legs, 1] = 0.5 * (child[legs, 1] + child[[8, 8, 11, 11], 1])
    metadata = root / "metadata" / "dance_001.json"
    metadata.parent.mkdir()
    metadata.write_text(json.dumps({"reference_pose": child.tolist()}))
    yield "use an image of the person who dances in the video"
    own = key_points(scene.dancer, standing(scene.dancer))
    metadata.write_text(json.dumps({"reference_pose": own.tolist()}))
    yield ANOTHER


def short_video(root):
    write_video(root / "videos" / "dance_001.mp4", np.zeros((3, 64, 64, 3), np.uint8), 12)
    for path in root.glob("*/dance_001/*"):
        if int(path.stem[-3:]) >= 3:
            path.unlink()
    yield "use a longer video, or lower (--sequence_length - 1) x --frame_stride to 2 or less"
    yield ANOTHER | {"sequence_length": 2, "frame_stride": 2}


def the_same_video_in_both(root):
    shutil.copytree(root, root / "validation")
    (root / "validation" / "videos" / "dance_002.mp4").unlink()
    changes = {"validation_data_dir": root / "validation"}
    yield "keep it in one of them", changes
    write_video(root / "validation" / "videos" / "dance_001.mp4", np.zeros((4, 64, 64, 3), np.uint8), 12)
    yield ANOTHER | changes


def grey_maps_for_four_channels(root):
    with_maps(root, (32, 32))
    yield "set the type's --guidance_input_channels to 1 or 3", depth_of(4)
    yield ANOTHER | depth_of(3)


def maps_of_another_shape(root):
    with_maps(root, (32, 16))
    types = depth_of(1)
    yield "a map covers the whole frame as it is shown: make it of the same aspect ratio", types
    with_maps(root, (32, 32))
    yield ANOTHER | types


def maps_that_never_change(root):
    with_maps(root, (32, 32))
    for path in (root / "depth" / "dance_001").iterdir():
        Image.new("L", (32, 32)).save(path)
    types = depth_of(1)
    yield "write the maps again", types
    with_maps(root, (32, 32))
    yield ANOTHER | types


def maps_of_several_images(root):
    with_maps(root, (32, 32))
    types = depth_of(1)
    path = root / "depth" / "dance_001" / "3.png"
    pages = [Image.new("L", (32, 32), number) for number in (3, 4)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    yield "write one file per frame of the video", types
    pages[0].save(path)
    yield ANOTHER | types
