"""How a fault is planted in a data folder of tests/datasets/conftest.py; words that several fixes share."""

import json
import shutil

import numpy as np
from PIL import Image

ANOTHER, NEAREST = {"another": True}, {"tolerance": 0.3}  # of a frame: rows are the nearest in time
EACH_FRAME = "make one for each frame of the video as it is decoded"
OR_RATE = ', or state their rate with --music_feature_fps or a meta.json {"fps": ...} beside them'
SCALE = ": if they are of a video of another size, scale them to this one's, else "
ABSENT = "set the confidence of points outside the frame to 0"


def folder_of(root, name, sample_id="dance_001"):
    return root / name / sample_id


def one_file(root, type_name="music", sample_id="dance_001"):
    """Put a sample's rows into one file; return (its path, rows)."""
    folder = folder_of(root, {"music": "music_features", "pose": "poses"}[type_name], sample_id)
    if type_name == "music":
        rows = np.stack([np.load(path) for path in sorted(folder.iterdir())])
    else:
        rows = np.array([json.loads(path.read_text())["keypoints"] for path in sorted(folder.iterdir())])
    shutil.rmtree(folder)
    np.save(folder.with_suffix(".npy"), rows.astype(np.float32))
    return folder.with_suffix(".npy"), rows.astype(np.float32)


def change_poses(root, change, frames=range(24), **more):
    """Change points [134, 3] of some of a sample's frames."""
    for number in frames:
        path = folder_of(root, "poses") / f"frame_{number:03d}.json"
        content = json.loads(path.read_text())
        points = change(np.array(content["keypoints"]))
        path.write_text(json.dumps(content | {"keypoints": points.tolist()} | more))


def file_too_many(path, content, fix):
    path.write_text(content)
    yield fix
    path.unlink()


def other_content(path, content, fix):
    before = path.read_bytes()
    path.write_text(content)
    yield fix
    path.write_bytes(before)


def scaled(factor):
    return lambda points: points * [factor, factor, 1]


def with_value(place, value):
    def change(points):
        points[place] = value
        return points

    return change


def with_maps(root, size, mode="L"):
    for sample_id in ("dance_001", "dance_002"):
        (root / "depth" / sample_id).mkdir(parents=True, exist_ok=True)
        for number in range(24):
            value = (number,) * len(mode)
            Image.new(mode, size, value).save(root / "depth" / sample_id / f"{number}.png")
