"""Files of one sample: their names, their number, their form."""

import json
import shutil

import numpy as np
from PIL import Image

from .planting import ANOTHER, file_too_many, folder_of, one_file, other_content


def numbers_from_1(root):
    def shift(by):
        for path in sorted(folder_of(root, "poses").iterdir(), reverse=by > 0):
            number = int(path.stem[-3:]) + by
            content = json.loads(path.read_text()) | {"frame_id": number}
            path.unlink()
            path.with_name(f"frame_{number:03d}.json").write_text(json.dumps(content))

    shift(1)
    yield "number frames from 0 without gaps"
    shift(-1)


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
    fix = "remove it, or name it by its frame, like frame_000.json"
    yield from file_too_many(folder_of(root, "poses") / "camera.json", "{}", fix)


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
    yield from other_content(path, path.read_text()[:50], "write it again")


def another_encoding(root):
    path = folder_of(root, "poses") / "frame_003.json"
    text = json.dumps(json.loads(path.read_text()) | {"name": "안무"}, ensure_ascii=False)
    path.write_text(text, encoding="cp949")
    yield "save it as UTF-8"
    path.write_text(path.read_text(encoding="cp949"), encoding="utf-8")


def all_frames_in_one_file(root):
    path = folder_of(root, "poses") / "frame_003.json"
    fix = "write each frame as a file of its own: frame_000.json, frame_001.json, ..."
    yield from other_content(path, f"[{path.read_text()}, {path.read_text()}]", fix)


def metadata_that_is_none(root):
    (root / "metadata").mkdir()
    fix = "prepare the video again, or remove the file"
    yield from file_too_many(root / "metadata" / "dance_001.json", "[]", fix)
