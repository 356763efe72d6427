"""Dances, which have no need of videos: poses and music alone."""

import json
import shutil

import numpy as np

from .planting import ANOTHER, change_poses, folder_of, one_file

DANCES = {"needs_videos": False}
RIGHT = ANOTHER | DANCES


def state(root, sample_id="dance_001", **facts):
    (root / "metadata").mkdir(exist_ok=True)
    (root / "metadata" / f"{sample_id}.json").write_text(json.dumps(facts))


def a_dance_without_music(root):
    shutil.rmtree(folder_of(root, "music_features"))
    yield "put a file for each frame there, or remove what else there is of the sample", DANCES
    shutil.rmtree(folder_of(root, "poses"))
    yield RIGHT


def no_poses_at_all(root):
    kept = (root / "poses").rename(root / "aside")
    yield "make it", DANCES
    kept.rename(root / "poses")
    yield RIGHT


def no_frame_rate(root):
    shutil.rmtree(root / "videos")
    state(root, "dance_002", frame_rate=12)
    yield 'write the frames per second of its poses there, as {"frame_rate": 30}', DANCES
    state(root, frame_rate=12)
    yield RIGHT


def a_frame_rate_in_words(root):
    state(root, frame_rate="12 fps")
    yield 'write the frames per second, as {"frame_rate": 30}', DANCES
    state(root, frame_rate=12)
    yield RIGHT


def pixels_of_an_unknown_frame(root):
    shutil.rmtree(root / "videos")
    for sample_id in ("dance_001", "dance_002"):
        state(root, sample_id, frame_rate=12)
    change_poses(root, lambda points: points * [64, 64, 1], coordinates="pixel")
    yield 'write its "width" and "height" into a meta.json in poses/', DANCES
    (root / "poses" / "meta.json").write_text('{"width": 64, "height": 64}')
    yield RIGHT


def music_as_maps(root):
    path, rows = one_file(root)
    other, others = one_file(root, sample_id="dance_002")
    np.save(path, rows[..., None, None])
    np.save(other, others[..., None, None])
    yield "extract the features again, as one vector per row", DANCES
    np.save(path, rows)
    np.save(other, others)
    yield RIGHT


def a_song_too_short(root):
    state(root, frame_rate=80)  # its 24 frames are 0.3 s
    yield "use a longer one, or remove the sample", DANCES
    shutil.rmtree(folder_of(root, "poses"))
    shutil.rmtree(folder_of(root, "music_features"))
    yield RIGHT


def no_neck(root):
    def without_neck(points):
        points[1] = 0
        return points

    change_poses(root, without_neck)
    yield "detect the poses again, or remove the sample", DANCES
    shutil.rmtree(folder_of(root, "poses"))
    shutil.rmtree(folder_of(root, "music_features"))
    yield RIGHT


def points_in_no_order(root):
    change_poses(root, lambda points: points[:17])
    number = "if all pose files have 17, set pose's --guidance_input_channels to 17, else detect them again"
    yield f"{number}; a dance needs one of (18, 24, 92, 134)", DANCES
    shutil.rmtree(folder_of(root, "poses"))
    shutil.rmtree(folder_of(root, "music_features"))
    yield RIGHT


def two_recipes(root):
    state(root, music_features={"name": "aist35", "channels": 5}, frame_rate=12)
    state(root, "dance_002", music_features={"name": "own.py:features", "channels": 5}, frame_rate=12)
    yield "extract the music features of all samples alike", DANCES
    state(root, "dance_002", music_features={"name": "aist35", "channels": 5}, frame_rate=12)
    yield RIGHT
