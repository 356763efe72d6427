"""Every fix that a message of the data check proposes, followed: the fault is gone and the data are right.

A case plants a fault in sample dance_001, yields the fix that must be proposed, and then follows it to the
letter. What it yields after that are settings that the fix changes; ANOTHER says that other data are right.
"""

import ast
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import GuidanceDataset, write_video
from datasets.guidance.key_point_check import SAME_UNITS

REPOSITORY = Path(__file__).parents[3]
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


def scaled(factor):
    return lambda points: points * [factor, factor, 1]


def with_value(place, value):
    def change(points):
        points[place] = value
        return points

    return change


# ---- arrays of another shape ----


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


# ---- rows and times ----


def save_at_a_rate(root, rate, num_rows):
    """Music whose feature 0 is the time, in frames of the video, in both samples."""
    frames = np.arange(num_rows) / rate * 12
    for sample_id in ("dance_001", "dance_002"):
        shutil.rmtree(folder_of(root, "music_features", sample_id), ignore_errors=True)
        rows = np.stack([frames, *np.repeat([[1], [2], [3], [4]], num_rows, axis=1)], 1)
        np.save(root / "music_features" / f"{sample_id}.npy", rows)


def state_rate(root, rate):
    (root / "music_features" / "meta.json").write_text(json.dumps({"fps": rate}))


def proposed_rate(fault):
    return float(re.findall(r"([\d.]+) per second would fit", fault.fix)[0])


def rate_too_high(root):
    save_at_a_rate(root, 30, 60)
    state_rate(root, 60)
    fault = yield "extract it for the whole video, or correct the rate (30 per second would fit)"
    state_rate(root, proposed_rate(fault))
    yield NEAREST


def rate_of_librosa(root):
    save_at_a_rate(root, 22050 / 512, 87)
    state_rate(root, 100)
    fault = yield "extract it for the whole video, or correct the rate (43.066 per second would fit)"
    state_rate(root, proposed_rate(fault))
    yield NEAREST


def music_that_ends_early(root):
    save_at_a_rate(root, 100, 130)
    state_rate(root, 100)
    yield "extract it for the whole video"  # and no word of a rate, at which it would be out of time
    save_at_a_rate(root, 100, 200)
    yield NEAREST


def song_that_goes_on(root):
    save_at_a_rate(root, 100, 530)
    state_rate(root, 100)
    yield "cut off the rest"
    save_at_a_rate(root, 100, 200)
    yield NEAREST


def rate_too_low(root):
    save_at_a_rate(root, 50, 100)
    state_rate(root, 20)
    fault = yield "correct the rate (50 per second would fit), or cut off the rest"
    state_rate(root, proposed_rate(fault))
    yield NEAREST


def rows_of_a_rate(root):
    save_at_a_rate(root, 25, 50)
    yield EACH_FRAME + OR_RATE
    state_rate(root, 25)
    yield NEAREST


def rate_where_none_is_needed(root):
    path, _ = one_file(root)
    path.with_suffix("").mkdir()
    meta = path.with_suffix("") / "meta.json"
    meta.write_text('{"fps": 20}')
    fix = "there is a row for each frame: state none"
    yield f"extract it for the whole video, or correct the rate ({fix})"
    meta.unlink()


def a_row_too_many(root):
    np.save(folder_of(root, "music_features") / "frame_024.npy", np.ones(5))
    yield EACH_FRAME + OR_RATE
    (folder_of(root, "music_features") / "frame_024.npy").unlink()


def a_pose_too_many(root):
    path = folder_of(root, "poses") / "frame_024.json"
    path.write_text('{"keypoints": ' + json.dumps([[0.5, 0.5, 1]] * 134) + "}")
    yield EACH_FRAME
    path.unlink()


def nonsense_rate(root):
    path = folder_of(root, "music_features") / "meta.json"
    path.write_text('{"fps": "fast"}')
    yield 'write the rows per second, as {"fps": 30}, or remove the file'
    path.write_text('{"fps": 12}')


def other_words_for_the_rate(root):
    path = folder_of(root, "music_features") / "meta.json"
    path.write_text('{"sample_rate": 22050}')
    yield 'write the rows per second, as {"fps": 30}, or remove the file'
    path.unlink()


# ---- files and their names ----


def numbers_from_1(root):
    folder = folder_of(root, "poses")
    for path in sorted(folder.iterdir(), reverse=True):
        number = int(path.stem[-3:])
        content = json.loads(path.read_text()) | {"frame_id": number + 1}
        path.unlink()
        (folder / f"frame_{number + 1:03d}.json").write_text(json.dumps(content))
    yield "number frames from 0 without gaps"
    for path in sorted(folder.iterdir()):
        number = int(path.stem[-3:])
        content = json.loads(path.read_text()) | {"frame_id": number - 1}
        path.unlink()
        (folder / f"frame_{number - 1:03d}.json").write_text(json.dumps(content))


def missing_frame(root):
    path = folder_of(root, "music_features") / "frame_010.npy"
    row = np.load(path)
    path.unlink()
    yield "add the file: every frame of the video needs one"
    np.save(path, row)


def doubled_frame(root):
    folder = folder_of(root, "poses")
    shutil.copy(folder / "frame_004.json", folder / "frame_04.json")
    yield "remove one"
    (folder / "frame_04.json").unlink()


def names_that_end_with_another_number(root):
    folder = folder_of(root, "poses")
    for path in sorted(folder.iterdir()):
        path.rename(path.with_name(f"{path.stem}_pose2d.json"))
    yield "the last number in a name is the frame's: name them like frame_000.json, or remove one"
    for path in sorted(folder.iterdir()):
        path.rename(path.with_name(f"{path.stem.removesuffix('_pose2d')}.json"))


def a_file_without_a_number(root):
    path = folder_of(root, "poses") / "camera.json"
    path.write_text("{}")
    yield "remove it, or name it by its frame, like frame_000.json"
    path.unlink()


def a_frame_named_by_no_number(root):
    folder = folder_of(root, "poses")
    (folder / "frame_000.json").rename(folder / "first.json")
    yield "remove it, or name it by its frame, like frame_000.json"
    (folder / "first.json").rename(folder / "frame_000.json")


def a_folder_and_a_file(root):
    folder = folder_of(root, "music_features")
    np.save(folder.with_suffix(".npy"), np.ones((24, 5)))
    yield "keep one"
    folder.with_suffix(".npy").unlink()


def two_endings(root):
    folder = folder_of(root, "music_features")
    np.save(folder / "frame_000.npy", np.load(folder / "frame_000.npy"))
    Image.new("L", (4, 4)).save(folder / "frame_000.png")
    yield "keep one kind per folder"
    (folder / "frame_000.png").unlink()


def drawn_skeletons(root):
    shutil.rmtree(root / "poses" / "dance_001")
    folder = folder_of(root, "poses")
    folder.mkdir()
    for number in range(24):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"frame_{number:03d}.png")
    own = "images are a type of their own: name the folder pose_maps"
    yield f"{own} and put pose_maps in --guidance_types, or extract pose as json"
    (root / "poses").rename(root / "pose_maps")
    shutil.rmtree(root / "pose_maps" / "dance_002")
    shutil.copytree(root / "pose_maps" / "dance_001", root / "pose_maps" / "dance_002")
    yield ANOTHER | {"guidance_types": ["music", "pose_maps"], "guidance_input_channels": [5, 3]}


def arrays_of_single_frames(root):
    path, rows = one_file(root, "pose")
    path.unlink()
    folder_of(root, "poses").mkdir()
    for number, row in enumerate(rows):
        np.save(folder_of(root, "poses") / f"{number}.npy", row)
    yield "save all frames of a video as one pose file, NAME.npy, or write json files"
    arrays = [np.load(folder_of(root, "poses") / f"{number}.npy") for number in range(24)]
    shutil.rmtree(folder_of(root, "poses"))
    np.save(path, np.stack(arrays))


def music_as_json(root):
    rows = {path: np.load(path) for path in folder_of(root, "music_features").iterdir()}
    for path, row in rows.items():
        path.unlink()
        path.with_suffix(".json").write_text(json.dumps(row.tolist()))
    yield "write them as npy files"
    for path in rows:
        np.save(path, np.array(json.loads(path.with_suffix(".json").read_text())))
        path.with_suffix(".json").unlink()


def no_files(root):
    kept = shutil.move(folder_of(root, "music_features"), root / "aside")
    folder_of(root, "music_features").mkdir()
    yield "put a npy file for each frame there"
    shutil.copytree(kept, folder_of(root, "music_features"), dirs_exist_ok=True)


def no_guidance(root):
    kept = shutil.move(folder_of(root, "music_features"), root / "aside")
    yield "put a file for each frame there, or remove the video"
    shutil.move(kept, folder_of(root, "music_features"))


def two_references(root):
    path = root / "reference_images" / "dance_001.webp"
    Image.new("RGB", (64, 64)).save(path)
    yield "keep one"
    path.unlink()


def no_reference(root):
    path = root / "reference_images" / "dance_001.png"
    kept = path.rename(root / "aside.png")
    yield "add it (.jpg .jpeg .png .webp)"
    kept.rename(path)


def tiny_reference(root):
    path = root / "reference_images" / "dance_001.png"
    content = path.read_bytes()
    Image.new("RGB", (20, 64)).save(path)
    yield "use a larger image"
    path.write_bytes(content)


def broken_json(root):
    path = folder_of(root, "poses") / "frame_003.json"
    content = path.read_bytes()
    path.write_bytes(content[:50])
    yield "write it again"
    path.write_bytes(content)


def another_encoding(root):
    path = folder_of(root, "poses") / "frame_003.json"
    text = json.dumps(json.loads(path.read_text()) | {"name": "안무"}, ensure_ascii=False)
    path.write_text(text, encoding="cp949")
    yield "save it as UTF-8"
    path.write_text(path.read_text(encoding="cp949"), encoding="utf-8")


def all_frames_in_one_file(root):
    path = folder_of(root, "poses") / "frame_003.json"
    frame = path.read_text()
    path.write_text(f"[{frame}, {frame}]")
    yield "write each frame as a file of its own: frame_000.json, frame_001.json, ..."
    path.write_text(frame)


def metadata_that_is_none(root):
    (root / "metadata").mkdir()
    path = root / "metadata" / "dance_001.json"
    path.write_text("[]")
    yield "prepare the video again, or remove the file"
    path.unlink()


# ---- key points ----


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
    path = folder_of(root, "poses") / "frame_003.json"
    content = path.read_text()
    path.write_text(json.dumps({"keypoints": [[0.5, 0.5, 1]] * 18}))
    yield "if all pose files have 18, set pose's --guidance_input_channels to 18, else detect them again"
    path.write_text(content)


def fewer_points_in_all(root):
    for sample_id in ("dance_001", "dance_002"):
        path, rows = one_file(root, "pose", sample_id)
        np.save(path, rows[:, :18])
    yield "if all pose files have 18, set pose's --guidance_input_channels to 18, else detect them again"
    yield ANOTHER | {"guidance_input_channels": [5, 18]}


def openpose_with_odd_numbers(root):
    points = np.full((17, 3), 0.5)
    path = folder_of(root, "poses") / "frame_003.json"
    content = path.read_text()
    path.write_text(json.dumps({"people": [{"pose_keypoints_2d": points.ravel().tolist()}]}))
    yield "write x, y and confidence of each of 18 or 25 points"
    path.write_text(content)


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
    content = path.read_text()
    path.write_text('{"people": 3}')
    yield "write it again with OpenPose"
    path.write_text(content)


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


# ---- values, videos and maps ----


def music_that_never_changes(root):
    before = {path: np.load(path) for path in folder_of(root, "music_features").iterdir()}
    for path in before:
        np.save(path, np.ones(5))
    yield "extract the features again"
    for path, row in before.items():
        np.save(path, row)


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


def with_maps(root, size, mode="L"):
    for sample_id in ("dance_001", "dance_002"):
        (root / "depth" / sample_id).mkdir(parents=True, exist_ok=True)
        for number in range(24):
            value = (number,) * len(mode)
            Image.new(mode, size, value).save(root / "depth" / sample_id / f"{number}.png")


def grey_maps_for_four_channels(root):
    with_maps(root, (32, 32))
    types = {"guidance_types": ["music", "pose", "depth"]}
    yield (
        "set the type's --guidance_input_channels to 1 or 3",
        types | {"guidance_input_channels": [5, 134, 4]},
    )
    yield ANOTHER | types | {"guidance_input_channels": [5, 134, 3]}


def maps_of_another_shape(root):
    with_maps(root, (32, 16))
    types = {"guidance_types": ["music", "pose", "depth"], "guidance_input_channels": [5, 134, 1]}
    yield "a map covers the whole frame as it is shown: make it of the same aspect ratio", types
    with_maps(root, (32, 32))
    yield ANOTHER | types


def maps_that_never_change(root):
    with_maps(root, (32, 32))
    for path in (root / "depth" / "dance_001").iterdir():
        Image.new("L", (32, 32)).save(path)
    types = {"guidance_types": ["music", "pose", "depth"], "guidance_input_channels": [5, 134, 1]}
    yield "write the maps again", types
    with_maps(root, (32, 32))
    yield ANOTHER | types


def maps_of_several_images(root):
    with_maps(root, (32, 32))
    types = {"guidance_types": ["music", "pose", "depth"], "guidance_input_channels": [5, 134, 1]}
    path = root / "depth" / "dance_001" / "3.png"
    pages = [Image.new("L", (32, 32), number) for number in (3, 4)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    yield "write one file per frame of the video", types
    pages[0].save(path)
    yield ANOTHER | types


# ---- folders ----


def nearly_named(root):
    (root / "poses").rename(root / "pose")
    yield "if that is meant, rename it to poses/"
    (root / "pose").rename(root / "poses")


def a_file_for_a_folder(root):
    kept = (root / "poses").rename(root / "aside")
    (root / "poses").touch()
    yield "move the file away and make it, or take pose out of --guidance_types"
    (root / "poses").unlink()
    kept.rename(root / "poses")


def no_folder(root):
    yield (
        "make it, or take depth out of --guidance_types",
        {"guidance_types": ["music", "pose", "depth"], "guidance_input_channels": [5, 134, 1]},
    )


def no_folder_of_the_only_type(root):
    types = {"guidance_types": ["depth"], "guidance_input_channels": [1]}
    yield "make it", types
    with_maps(root, (32, 32))
    yield ANOTHER | types


def an_empty_folder(root):
    kept = (root / "music_features").rename(root / "aside")
    (root / "music_features").mkdir()
    yield "put a folder of music files for each video there"
    shutil.copytree(kept, root / "music_features", dirs_exist_ok=True)


def no_images(root):
    kept = (root / "reference_images").rename(root / "aside")
    (root / "reference_images").mkdir()
    yield "put files there (.jpg .jpeg .png .webp)"
    shutil.copytree(kept, root / "reference_images", dirs_exist_ok=True)


CASES = [
    transposed, in_a_batch, transposed_in_a_batch, with_a_last_axis, files_in_a_batch,
    transposed_and_of_another_number, transposed_at_a_rate, points_of_another_order, points_in_a_batch,
    one_person_of_each_frame, pairs, more_features_in_all, more_features_in_one, rows_without_any_order,
    rows_of_different_shapes, samples_of_different_shapes, no_rows, an_archive, pickled, not_a_number,
    rate_too_high, rate_of_librosa, music_that_ends_early, rate_where_none_is_needed, song_that_goes_on,
    rate_too_low, a_row_too_many, rows_of_a_rate, a_pose_too_many, nonsense_rate, other_words_for_the_rate,
    numbers_from_1, missing_frame, doubled_frame, names_that_end_with_another_number, a_file_without_a_number,
    a_frame_named_by_no_number, a_folder_and_a_file, two_endings, drawn_skeletons, arrays_of_single_frames,
    music_as_json, no_files, no_guidance, two_references, no_reference, tiny_reference, broken_json,
    another_encoding, all_frames_in_one_file, metadata_that_is_none, no_known_key, flat_key_points,
    another_frame_id,
    fewer_points_in_one, fewer_points_in_all, openpose_with_odd_numbers, openpose_for_other_numbers,
    no_list_of_people, points_without_numbers, unknown_units, two_stated_units, units_mixed,
    units_mixed_in_one_file, wrong_units_stated, a_hand_outside, from_the_middle, pixels_of_a_larger_video,
    one_point_outside_in_pixels, nobody, nobody_for_long, music_that_never_changes, short_video,
    the_same_video_in_both, grey_maps_for_four_channels, maps_of_another_shape, maps_that_never_change,
    maps_of_several_images, nearly_named, a_file_for_a_folder, no_folder, no_folder_of_the_only_type,
    an_empty_folder, no_images,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_advice_followed_makes_the_data_right(shared_root, data_root, check, settings, case):
    steps = case(data_root)
    planted = next(steps)
    fix, changes = planted if isinstance(planted, tuple) else (planted, {})
    faults = check(data_root, num_workers=0, **changes).faults
    found = [fault for fault in faults if fault.fix == fix]
    assert found, [str(fault) for fault in faults]
    changes = dict(follow(steps, found[0]))
    is_another, tolerance = changes.pop("another", False), changes.pop("tolerance", 1e-6)
    report = check(data_root, num_workers=0, **changes)
    assert report.ok, report.summary()
    if not is_another:
        dataset, right = (GuidanceDataset(root, **settings) for root in (data_root, shared_root))
        for name, values in right.read_clip(0, 5)["guidance"].items():
            np.testing.assert_allclose(dataset.read_clip(0, 5)["guidance"][name], values, atol=tolerance)


def follow(steps, fault):
    """Return the settings that following a fault's fix changes."""
    try:
        return steps.send(fault) or {}
    except StopIteration:
        return {}


# ---- no fix is left out ----

ROOMS = (*REPOSITORY.glob("datasets/checking/*.py"), *REPOSITORY.glob("datasets/guidance/*.py"),
         REPOSITORY / "datasets" / "data_folder.py")  # fmt: skip
NOT_TRIED = {  # the fix is to bring back what was there, to look again, or belongs to another command
    "restore the file", "restore or replace the file", "replace the file", "write the map again",
    "check the path", "re-encode the video; if others die too, lower --num_workers",
    "cut the video and its guidance there, or record it again: a still image is no dance",
    "mend them likewise", "leave out --random_flip", "leave out --random_flip; {}",
    "give the size of the video they were made from (--pose_size WIDTH HEIGHT)",
    "give the folder that holds videos/, poses/ and so on", "give {} instead",
    "prepare it with prepare_guidance.py, or see that maps and points in pixels are of {}",
    "write images of 1, 3 or 4 channels",
}  # fmt: skip


def literals(node):
    """Yield the texts that an expression may be, {} in place of what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from (*literals(node.body), *literals(node.orelse))


def proposed_fixes():
    """Return the fixes that are written in the rooms of the data check."""
    places = {"DataError": 2, "add": 2, "Fault": 3}  # the argument that is the fix
    found = set()
    for path in ROOMS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in places and len(node.args) > places[name]:
                    found |= set(literals(node.args[places[name]]))
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "fix":
                found |= set(literals(node.value))
            elif isinstance(node, ast.FunctionDef) and node.name.endswith(("_fix", "fitting_rate")):
                returned = [one.value for one in ast.walk(node) if isinstance(one, ast.Return)]
                found |= {text for value in returned for text in literals(value)}
    return {fix for fix in found if fix.strip("{} ,.:;()")}


def test_every_fix_is_tried():
    tried = Path(__file__).read_text(encoding="utf-8").partition("# ---- no fix is left out")[0]
    fixes = proposed_fixes()
    assert len(fixes) > 40
    untried = {fix for fix in fixes - NOT_TRIED if max(fix.split("{}"), key=len).strip(' "()') not in tried}
    assert untried == set()
