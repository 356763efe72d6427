"""Guidance files one by one: what is read, and that each fault is named with its file."""

import json

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from datasets import DataError, read_music, read_pose_folder
from datasets.guidance.key_points import read_key_points
from datasets.guidance.maps import Maps
from datasets.guidance.tracks import open_track

POINT = [0.25, 0.5, 0.9]


def write_poses(folder, frames, **extra):
    folder.mkdir(parents=True, exist_ok=True)
    for number, keypoints in enumerate(frames):
        content = {"keypoints": keypoints, "frame_id": number, **extra}
        (folder / f"frame_{number:03d}.json").write_text(json.dumps(content))
    return folder


# ---- our key points ----


def test_poses_are_read_in_the_order_of_their_numbers(tmp_path):
    for number in (0, 1, 2, 10, 9, 8, 7, 6, 5, 4, 3):
        (tmp_path / f"{number}.json").write_text(json.dumps({"keypoints": [[number / 100, 0, 1]]}))
    np.testing.assert_allclose(read_pose_folder(tmp_path, 1)[:, 0, 0], np.arange(11) / 100)


@pytest.mark.parametrize(
    ("points", "stated", "expected"),
    [
        ([[0.2, 0.4, 1], [1.2, -0.1, 1]], None, "normalized"),  # a hand outside the frame
        ([[20, 40, 1], [120, 10, 1]], None, "pixel"),
        ([[0.2, 0.4, 1], [0.3, 0.1, 1], [500, 0, 1]], None, "normalized"),  # one stray
        ([[0.5, 0.5, 1], [1, 1, 1]], "pixel", "pixel"),  # in the corner, but stated
        ([[0, 0, 0], [0, 0, 0]], None, "normalized"),
        ([[0, 0, 0], [0, 0, 0], [0, 0, 0], [30, 60, 1]], None, "pixel"),  # absent points do not count
    ],
)
def test_units_are_decided_by_the_whole_video(tmp_path, points, stated, expected):
    extra = {"coordinates": stated} if stated else {}
    write_poses(tmp_path, [[point] for point in points], **extra)
    read = read_pose_folder(tmp_path, 1, frame_size=(100, 200))
    scale = [1 / 200, 1 / 100, 1] if expected == "pixel" else [1, 1, 1]
    np.testing.assert_allclose(read[:, 0], np.array(points) * scale, rtol=1e-6)


def test_pixels_need_the_size_of_their_frame(tmp_path):
    write_poses(tmp_path, [[[50, 60, 1]]])
    with pytest.raises(DataError, match="in pixels, of a frame of unknown size; give the size"):
        read_pose_folder(tmp_path, 1)


def test_files_that_disagree_about_units(tmp_path):
    write_poses(tmp_path, [[POINT], [POINT]], coordinates="pixel")
    (tmp_path / "frame_001.json").write_text(json.dumps({"keypoints": [POINT], "coordinates": "normalized"}))
    with pytest.raises(DataError, match="disagree about coordinates"):
        read_pose_folder(tmp_path, 1)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b'{"keypoints": [[0.1, 0.2', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
        (b"[]", "a JSON object expected"),
        (b"{}", 'neither "keypoints" nor'),
        (b'{"keypoints": []}', "not a list of number triples"),
        (b'{"keypoints": null}', "not a list of number triples"),
        (b'{"keypoints": [[0.1, 0.2]]}', "not a list of number triples"),
        (b'{"keypoints": [[0.1, 0.2, 1], [0.1, 0.2]]}', "not a list of number triples"),
        (b'{"keypoints": [[0.1, "left", 1]]}', "not a list of number triples"),
        (b'{"keypoints": [[0.1, 0.2, 1], [0.1, 0.2, 1]]}', "2 key points, expected 1; .*set .* to 2"),
        (b'{"keypoints": [[NaN, 0.2, 1]]}', "NaN"),
        (b'{"keypoints": [[0.1, Infinity, 1]]}', "infinite"),
        (b'{"keypoints": [[0.1, 0.2, -1]]}', "negative"),
        (b'{"keypoints": [[0.1, null, 1]]}', "NaN"),
        (b'{"keypoints": [[0.1, 0.2, 1]], "coordinates": "cm"}', "coordinates is 'cm'"),
        (b'{"keypoints": [[0.1, 0.2, 1]], "frame_id": 3}', "frame_id is 3 in the file of frame 1"),
    ],
)
def test_faulty_pose_file_is_named(tmp_path, content, problem):
    write_poses(tmp_path, [[POINT], [POINT]])
    (tmp_path / "frame_001.json").write_bytes(content)
    with pytest.raises(DataError, match=rf"frame_001\.json: .*{problem}") as error:
        read_pose_folder(tmp_path, 1)
    assert "\n" not in str(error.value)


# ---- OpenPose ----


def openpose_person(body=25, face=70, hands=21):
    """Each part's point k is [k, part, 0.5]; parts are 1 body, 2 face, 3 left hand, 4 right hand."""

    def part(count, number):
        return [value for k in range(count) for value in (k, number, 0.5)]

    return {
        "person_id": [-1],
        "pose_keypoints_2d": part(body, 1),
        "face_keypoints_2d": part(face, 2),
        "hand_left_keypoints_2d": part(hands, 3),
        "hand_right_keypoints_2d": part(hands, 4),
    }


def write_openpose(folder, people):
    path = folder / "dance_000000000000_keypoints.json"
    path.write_text(json.dumps({"version": 1.3, "people": people}))
    return path


@pytest.mark.parametrize("num_points", [18, 24, 92, 134])
def test_openpose_body_25(tmp_path, num_points):
    points, _ = read_key_points(
        write_openpose(tmp_path, [openpose_person(), openpose_person(18)]), num_points
    )
    body = [[k, 1] for k in range(25) if k != 8]  # 8 is the middle of the hips
    expected = body + [[k, 2] for k in range(68)] + [[k, 3] for k in range(21)] + [[k, 4] for k in range(21)]
    np.testing.assert_array_equal(points[:, :2], expected[:num_points])
    assert (points[:, 2] == 0.5).all()


def test_openpose_coco_has_no_feet(tmp_path):
    points, _ = read_key_points(write_openpose(tmp_path, [openpose_person(18, 68)]), 134)
    np.testing.assert_array_equal(points[:18, 0], np.arange(18))
    assert (points[18:24] == 0).all() and (points[24:, 2] > 0).all()


@pytest.mark.parametrize("people", [[], [{}], [{"pose_keypoints_2d": [], "face_keypoints_2d": None}]])
def test_openpose_without_a_detection_is_absent(tmp_path, people):
    points, _ = read_key_points(write_openpose(tmp_path, people), 134)
    assert points.shape == (134, 3) and not points.any()


@pytest.mark.parametrize("people", [[None], [None, openpose_person(18)], [openpose_person(18), None]])
def test_people_who_are_null_are_not_there(tmp_path, people):
    points, _ = read_key_points(write_openpose(tmp_path, people), 18)
    np.testing.assert_array_equal(points[:, 0], np.arange(18) if len(people) > 1 else np.zeros(18))


def test_a_list_of_one_frame_is_that_frame(tmp_path):
    """As ComfyUI's nodes of OpenPose and DWPose write it."""
    path = write_openpose(tmp_path, [openpose_person(18)])
    frame = json.loads(path.read_text()) | {"canvas_width": 512, "canvas_height": 768}
    path.write_text(json.dumps([frame]))
    np.testing.assert_array_equal(read_key_points(path, 18)[0][:, 0], np.arange(18))
    track = open_track("pose", tmp_path)
    assert track.kind.stated_size(track, (18, 3)) == (768, 512)
    path.write_text(json.dumps([frame] * 3))
    with pytest.raises(DataError, match="holds 3 frames; write each frame as a file of its own"):
        read_key_points(path, 18)


@pytest.mark.parametrize(
    ("people", "num_points", "problem"),
    [
        ([openpose_person(17)], 134, "pose_keypoints_2d has 51 numbers"),
        ([openpose_person(hands=20)], 134, "hand_left_keypoints_2d has 60 numbers"),
        ([openpose_person()], 133, "give no 133 points"),
        ({"a": 1}, 134, "people is not a list"),
        ([3], 134, "people is not a list"),
    ],
)
def test_faulty_openpose_file(tmp_path, people, num_points, problem):
    with pytest.raises(DataError, match=problem):
        read_key_points(write_openpose(tmp_path, people), num_points)


# ---- numbering ----


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["0.npy", "1.npy", "3.npy"], r"frame 2 is missing \(after 1\.npy\)"),
        (["f_001.npy", "f_002.npy"], r"f_001\.npy: frame 0 is missing, the first is 1"),
        (["f_0.npy", "f_00.npy"], r"frame 0 twice, also f_0\.npy"),
        (["a.npy"], "no frame number in its name"),
        (["0.npy", "1.json"], "files of different kinds"),
        (["0.png"], "music must be npy files, found png"),
        ([], "no music files in it"),
    ],
)
def test_misnumbered_files(tmp_path, names, problem):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=problem):
        open_track("music", tmp_path)


def test_missing_path(tmp_path):
    with pytest.raises(DataError, match="none: no such music folder or file"):
        read_music(tmp_path / "none", 5)


@pytest.mark.parametrize(
    "content", ["{}", '{"fps": "30"}', '{"fps": 0}', '{"fps": -5}', '{"fps": true}', "30", "{"]
)
def test_faulty_rate(tmp_path, content):
    np.save(tmp_path / "0.npy", np.ones(5))
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(DataError, match=r"meta\.json: (fps must be a positive number|is not valid JSON)"):
        open_track("music", tmp_path)


# ---- music ----


@pytest.mark.parametrize("shape", [(35,), (35, 4, 6), (1,)])
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32])
def test_music_is_read_raw(tmp_path, shape, single, dtype):
    values = (100 * np.random.default_rng(0).normal(size=(6, *shape))).astype(dtype)
    path = tmp_path / ("music.npy" if single else "music")
    if single:
        np.save(path, values)
    else:
        path.mkdir()
        for number, row in enumerate(values):
            np.save(path / f"frame_{number:03d}.npy", row)
    read = read_music(path, shape[0])
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float32))


def test_a_plain_column_is_music_of_one_feature(tmp_path):
    np.save(tmp_path / "music.npy", np.arange(4.0))
    assert read_music(tmp_path / "music.npy", 1).tolist() == [[0], [1], [2], [3]]


def write_bytes(path, content):
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda path: np.save(path, np.ones(34)), r"shape \(34,\), expected \(35,\) .* to 34"),
        (lambda path: np.save(path, np.ones((1, 35))), r"shape \(1, 35\), expected"),
        (lambda path: np.save(path, np.full(35, np.nan)), "NaN or infinite"),
        (lambda path: np.save(path, np.full(35, np.inf)), "NaN or infinite"),
        (lambda path: np.save(path, np.array([{"a": 1}] * 35)), "pickled objects"),
        (lambda path: np.save(path, np.array(["a"] * 35)), "numbers expected, found <U1"),
        (lambda path: np.save(path, np.ones(35, np.complex64)), "numbers expected, found complex64"),
        (lambda path: write_bytes(path, b"\x93NUMPY\x01\x00\x08\x00{'descr\n"), "not a whole .npy file"),
        (lambda path: write_bytes(path, b"\x93NUMPY\x01\x00\x08\x00((((((\n\n"), "not a whole .npy file"),
        (lambda path: write_bytes(path, b""), "not a whole .npy file|no array"),
        (lambda path: write_bytes(path, b"not an array"), "pickled objects or no array"),
        (lambda path: write_bytes(path, b"\x93NUMPY\x01\x00v\x00{'descr'"), "not a whole .npy file"),
    ],
)
def test_faulty_music_file_is_named(tmp_path, write, problem):
    for number in range(3):
        np.save(tmp_path / f"frame_{number:03d}.npy", np.ones(35))
    write(tmp_path / "frame_001.npy")
    with pytest.raises(DataError, match=rf"frame_001\.npy: .*({problem})") as error:
        read_music(tmp_path, 35)
    assert "\n" not in str(error.value)


def test_truncated_array_file(tmp_path):
    np.save(tmp_path / "music.npy", np.ones((50, 35)))
    content = (tmp_path / "music.npy").read_bytes()
    for share in (0.001, 0.5):
        (tmp_path / "music.npy").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError, match=r"music\.npy: "):
            read_music(tmp_path / "music.npy", 35)


def test_faulty_row_of_one_file_is_named(tmp_path):
    values = np.ones((9, 5), np.float32)
    values[7, 2] = np.nan
    np.save(tmp_path / "music.npy", values)
    with pytest.raises(DataError, match=r"music\.npy: row 7: NaN"):
        read_music(tmp_path / "music.npy", 5)


def test_arrays_of_different_shapes(tmp_path):
    np.save(tmp_path / "0.npy", np.ones((5, 2, 2)))
    np.save(tmp_path / "1.npy", np.ones((5, 2, 3)))
    with pytest.raises(DataError, match=r"1\.npy: shape \(5, 2, 3\), other frames have \(5, 2, 2\)"):
        read_music(tmp_path, 5)


# ---- maps ----


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (np.array([[0, 51]], np.uint8), 1, [[[0, 0.2]]]),
        (np.array([[0, 13107]], np.uint16), 1, [[[0, 0.2]]]),
        (np.array([[[255, 51, 0]]], np.uint8), 3, [[[0.0]], [[0.2]], [[1.0]]]),  # OpenCV writes blue first
        (np.array([[0, 51]], np.uint8), 3, [[[0, 0.2]]] * 3),
        (np.array([[[51, 51, 51]]], np.uint8), 1, [[[0.2]]]),
        (np.array([[[255, 51, 0, 204]]], np.uint8), 4, [[[0.0]], [[0.2]], [[1.0]], [[0.8]]]),
    ],
)
def test_maps_are_read_from_0_to_1(tmp_path, image, channels, expected):
    cv2.imwrite(str(tmp_path / "0.png"), image)
    track = open_track("depth", tmp_path)
    np.testing.assert_allclose(track.kind.reader(track, channels)(0), expected, atol=1e-6)


def test_maps_are_upright_and_black_where_transparent(tmp_path):
    """A profile changes no value: they are data."""
    image = np.zeros((4, 6, 4), np.uint8)
    image[0, 0], image[3, 0] = (255, 255, 255, 255), (255, 255, 255, 51)
    picture = Image.fromarray(image)
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter, clockwise
    picture.save(tmp_path / "0.png", exif=exif, icc_profile=ImageCms.ImageCmsProfile(
        ImageCms.createProfile("LAB")).tobytes())  # fmt: skip
    values = open_track("depth", tmp_path).kind.load_row(tmp_path / "0.png", 1)
    assert values.shape == (1, 6, 4) and values[0, 0].tolist() == pytest.approx([0.2, 0, 0, 1])
    assert open_track("depth", tmp_path).kind.load_row(tmp_path / "0.png", 4)[3].max() == 1


def test_a_map_of_several_frames_is_named(tmp_path):
    frames = [Image.new("L", (4, 4), 9 * number) for number in range(3)]
    for name in ("0.png", "0.tif", "0.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match="holds 3 images; write one file per frame"):
            Maps().load_row(tmp_path / name, 1)


def test_faulty_maps(tmp_path):
    cv2.imwrite(str(tmp_path / "0.png"), np.zeros((4, 4, 3), np.uint8))
    track = open_track("depth", tmp_path)
    with pytest.raises(DataError, match=r"0\.png: an image of 3 channels cannot give 2"):
        track.kind.reader(track, 2)(0)
    for content in (b"", b"no image"):
        (tmp_path / "0.png").write_bytes(content)
        with pytest.raises(DataError, match=r"0\.png: is not a readable image"):
            track.kind.reader(track, 1)(0)
