"""Arrays of another shape or type."""

import re
import shutil

import numpy as np

from .planting import ANOTHER, folder_of, one_file


def transposed(root):
    path, rows = one_file(root)
    np.save(path, rows.T)
    yield "transpose it"
    np.save(path, np.load(path).T)


def in_a_batch(root):
    path, rows = one_file(root)
    np.save(path, rows[None])
    yield "drop the first axis"
    np.save(path, np.load(path)[0])


def transposed_in_a_batch(root):
    path, rows = one_file(root)
    np.save(path, rows.T[None])
    yield "drop the first axis and then transpose it"
    np.save(path, np.load(path)[0].T)


def with_a_last_axis(root):
    path, rows = one_file(root)
    np.save(path, rows[..., None])
    yield "drop the last axis"
    np.save(path, np.load(path)[..., 0])


def files_in_a_batch(root):
    for path in folder_of(root, "music_features").iterdir():
        np.save(path, np.load(path)[None])
    yield "drop the first axis"
    for path in folder_of(root, "music_features").iterdir():
        np.save(path, np.load(path)[0])


def transposed_and_of_another_number(root):
    for sample_id in ("dance_001", "dance_002"):
        path, rows = one_file(root, sample_id=sample_id)
        np.save(path, rows.T)
    to_5 = "if all music files have 5, set music's --guidance_input_channels to 5, else extract them again"
    yield f"transpose it, then {to_5}", {"guidance_input_channels": [1, 134]}
    for path in (root / "music_features").iterdir():
        np.save(path, np.load(path).T)


def transposed_at_a_rate(root):
    path, rows = one_file(root)
    path.with_name("meta.json").write_text('{"fps": 12}')
    np.save(path, rows.T)
    yield "transpose it"
    np.save(path, np.load(path).T)


def points_of_another_order(root):
    path, rows = one_file(root, "pose")
    np.save(path, np.moveaxis(rows, 0, 2))  # [K, 3, N]
    found = yield "move its axes with numpy.moveaxis(array, 2, 0)"
    source, target = map(int, re.findall(r"\d+", found.fix))
    np.save(path, np.moveaxis(np.load(path), source, target))


def points_in_a_batch(root):
    path, rows = one_file(root, "pose")
    np.save(path, rows[None])
    yield "drop the first axis"
    np.save(path, np.load(path)[0])


def one_person_of_each_frame(root):
    path, rows = one_file(root, "pose")
    np.save(path, rows[:, None])
    yield "drop the second axis"
    np.save(path, np.load(path)[:, 0])


def pairs(root):
    path, rows = one_file(root, "pose")
    np.save(path, rows[..., :2])
    yield "save one [x, y, confidence] per point of each frame"
    points = np.load(path)
    np.save(path, np.concatenate([points, np.full_like(points[..., :1], 0.9)], -1))


def more_features_in_all(root):
    for path in root.glob("music_features/*/*.npy"):
        np.save(path, np.append(np.load(path), 5))
    yield "if all music files have 6, set music's --guidance_input_channels to 6, else extract them again"
    yield ANOTHER | {"guidance_input_channels": [6, 134]}


def more_features_in_one(root):
    path = folder_of(root, "music_features") / "frame_003.npy"
    row = np.load(path)
    np.save(path, np.append(row, 5))
    yield "if all music files have 6, set music's --guidance_input_channels to 6, else extract them again"
    np.save(path, row)


def rows_without_any_order(root):
    path = folder_of(root, "music_features") / "frame_003.npy"
    row = np.load(path)
    np.save(path, np.zeros((5, 7)))
    yield "extract them again, one row per frame"
    np.save(path, row)


def rows_of_different_shapes(root):
    for path in folder_of(root, "music_features").iterdir():
        np.save(path, np.load(path)[:, None, None] * np.ones((1, 2, 2 + ("_003" in path.name))))
    shutil.rmtree(folder_of(root, "music_features", "dance_002"))
    shutil.copytree(folder_of(root, "music_features"), folder_of(root, "music_features", "dance_002"))
    yield "make all of them alike"
    for path in root.glob("music_features/*/*.npy"):
        np.save(path, np.load(path)[..., :2])
    yield ANOTHER


def samples_of_different_shapes(root):
    for path in folder_of(root, "music_features").iterdir():
        np.save(path, np.load(path)[:, None, None] * np.ones((1, 2, 2)))
    yield "extract all samples alike"
    for path in folder_of(root, "music_features", "dance_002").iterdir():
        np.save(path, np.load(path)[:, None, None] * np.ones((1, 2, 2)))
    yield ANOTHER


def no_rows(root):
    path, rows = one_file(root)
    np.save(path, rows[:0])
    yield "save one row per frame"
    np.save(path, rows)


def an_archive(root):
    path, rows = one_file(root)
    with path.open("wb") as file:
        np.savez(file, rows)
    yield "save a float32 array with numpy.save"
    with np.load(path) as content:
        rows = content["arr_0"]
    np.save(path, rows)


def pickled(root):
    path, rows = one_file(root)
    np.save(path, rows.astype(object))
    yield "save a plain number array with numpy.save"
    np.save(path, np.load(path, allow_pickle=True).astype(np.float32))


def not_a_number(root):
    path = folder_of(root, "music_features") / "frame_003.npy"
    row = np.load(path)
    np.save(path, row * np.nan)
    yield "extract the features again"
    np.save(path, row)
