"""The transform of a clip: frames, key points, maps and the reference are cut, padded and flipped alike."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from datasets import DataError, write_video


@pytest.fixture(scope="module")
def dotted_root(tmp_path_factory):
    """A wide video, 192x96, with a red dot that wanders; pose has it as key point 0, maps as a bright spot.

    The other key points span a person. depth: images of half the size; flow: npy at frame size.
    """
    root = tmp_path_factory.mktemp("dotted")
    frames = np.full((8, 96, 192, 3), 60, np.uint8)
    for folder in ("poses", "depth", "flow"):
        (root / folder / "a").mkdir(parents=True)
    for number in range(8):
        x, y = 0.45 + 0.02 * number, 0.3 + 0.05 * number
        centre = (round(x * 192 * 16 - 8), round(y * 96 * 16 - 8))  # of pixels, in 1/16: pixel 0 spans 0 to 1
        cv2.circle(frames[number], centre, 5 * 16, (255, 0, 0), -1, cv2.LINE_AA, shift=4)
        spot = (frames[number][..., 0].astype(np.float32) - 60) / 195
        keypoints = [[x, y, 1.0], [0.4, 0.1, 1.0], [0.65, 0.9, 1.0], [0, 0, 0]]
        (root / "poses" / "a" / f"f{number}.json").write_text(json.dumps({"keypoints": keypoints}))
        np.save(root / "flow" / "a" / f"{number}.npy", np.stack([spot, 0 * spot]))
        half = cv2.resize(spot, (96, 48), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(root / "depth" / "a" / f"{number}.png"), (half * 65535).astype(np.uint16))
    write_video(root / "videos" / "a.mp4", frames, 8)
    (root / "reference_images").mkdir()
    Image.fromarray(frames[0]).save(root / "reference_images" / "a.png")
    return root


@pytest.mark.parametrize("resolution", [64, (96, 80), (120, 240), (50, 130)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_dot_stays_under_its_key_point(dotted_root, make, fit, resolution):
    dataset = make(
        dotted_root, guidance_types=["pose", "depth", "flow"], guidance_input_channels=[4, 1, 2], fit=fit,
        resolution=resolution,
    )  # fmt: skip
    height, width = dataset.resolution
    for epoch in range(3):
        dataset.set_epoch(epoch)
        item = dataset[0]
        guidance = item["guidance"]
        redness = (item["frames"][:, 0] - item["frames"][:, 1]).clamp(min=0)
        assert guidance["depth"].shape == (4, 1, height, width) and guidance["flow"].shape == (
            4,
            2,
            height,
            width,
        )
        for frame in range(4):
            x, y, confidence = guidance["pose"][frame, 0].tolist()
            assert confidence == 1
            for picture in (redness[frame], guidance["depth"][frame, 0], guidance["flow"][frame, 0]):
                found = centre_of(picture)
                assert abs(found[0] - x * width) < 0.6 and abs(found[1] - y * height) < 0.6


def centre_of(picture):
    """(x, y) of a bright spot, in pixels from the left and top edge."""
    weight = (picture - 0.3 * picture.max()).clamp(min=0)
    rows, columns = torch.arange(picture.shape[0]) + 0.5, torch.arange(picture.shape[1]) + 0.5
    return float((weight.sum(0) * columns).sum() / weight.sum()), float(
        (weight.sum(1) * rows).sum() / weight.sum()
    )


def test_random_crops_differ_and_keep_the_person(dotted_root, make):
    dataset = make(
        dotted_root, guidance_types=["pose"], guidance_input_channels=[4], sequence_length=8, fit="crop"
    )
    places = set()
    for epoch in range(10):
        dataset.set_epoch(epoch)
        points = dataset[0]["guidance"]["pose"]
        assert (points[:, :3, 2] == 1).all() and (points[:, 3] == 0).all()
        places.add(round(float(points[0, 1, 0]), 3))
    assert len(places) > 3
    centred = dataset.read_clip(0)["guidance"]["pose"]
    left, right = float(centred[..., :3, 0].min()), float(centred[..., :3, 0].max())
    assert abs(left - (1 - right)) < 0.02


def test_point_outside_the_crop_is_absent(dotted_root, make):
    """A narrow crop of a wide frame: the person does not fit, and a point that is cut off is absent."""
    dataset = make(
        dotted_root,
        guidance_types=["pose"],
        guidance_input_channels=[4],
        resolution=(96, 24),
        sequence_length=8,
        fit="crop",
    )
    points = dataset.read_clip(0)["guidance"]["pose"]
    assert (points[:, 1:3] == 0).all() and (points[..., :2] >= 0).all() and (points[..., :2] <= 1).all()


def test_pad_keeps_the_whole_frame_between_black_bars(dotted_root, make):
    dataset = make(dotted_root, guidance_types=["depth"], guidance_input_channels=[1], fit="pad")
    item = dataset.read_clip(0)
    assert (item["frames"][..., :16, :] == -1).all() and (item["frames"][..., 48:, :] == -1).all()
    assert (item["frames"][..., 17:47, :] > -0.8).any(1).all()
    assert (item["reference_image"][..., :16, :] == -1).all()
    assert (item["guidance"]["depth"][..., :16, :] == 0).all()


def test_auto_pads_what_is_more_than_a_third_off(dotted_root, make):
    pose = {"guidance_types": ["pose"], "guidance_input_channels": [4]}
    for resolution, alike in ((64, "pad"), ((64, 96), "crop"), ((64, 94), "pad"), ((48, 128), "crop")):
        first = make(dotted_root, **pose, resolution=resolution).read_clip(0)["frames"]
        second = make(dotted_root, **pose, resolution=resolution, fit=alike).read_clip(0)["frames"]
        assert torch.equal(first, second), resolution


def test_center_crop_is_the_same_for_all_clips_of_a_video(dotted_root, make):
    """Key point 0 wanders, and so would a crop about the clip's own points."""
    settings = {"guidance_types": ["pose"], "guidance_input_channels": [4], "fit": "crop"}
    dataset = make(dotted_root, **settings, center_crop=True, sequence_length=1)
    whole = make(dotted_root, **settings, sequence_length=8).read_clip(0)  # all frames in one clip
    drawn = []
    for epoch in range(12):
        dataset.set_epoch(epoch)
        for item in (dataset[0], dataset.read_clip(0, epoch % 8)):
            frame = int(item["frame_indices"][0])
            torch.testing.assert_close(item["frames"][0], whole["frames"][frame])
            torch.testing.assert_close(item["guidance"]["pose"][0], whole["guidance"]["pose"][frame])
        drawn.append(int(dataset[0]["frame_indices"][0]))
    assert len(set(drawn)) > 3


def test_flip_is_of_the_whole_sample(shared_root, make):
    """Half of the clips, whole: frames, key points with sides exchanged, reference and CLIP's picture."""
    plain, flipping = make(shared_root), make(shared_root, random_flip=True)
    seen = []
    for epoch in range(16):
        plain.set_epoch(epoch), flipping.set_epoch(epoch)
        item, other = plain[0], flipping[0]
        assert torch.equal(item["frame_indices"], other["frame_indices"])
        assert torch.equal(item["guidance"]["music"], other["guidance"]["music"])
        flipped = not torch.equal(item["frames"], other["frames"])
        seen.append(flipped)
        if flipped:
            for name in ("frames", "reference_image", "clip_image"):
                torch.testing.assert_close(other[name], item[name].flip(-1), msg=name)
            torch.testing.assert_close(
                other["guidance"]["pose"][:, 4, 0], 1 - item["guidance"]["pose"][:, 7, 0]
            )
        else:
            assert torch.equal(item["guidance"]["pose"], other["guidance"]["pose"])
    assert 3 < sum(seen) < 13
    assert torch.equal(flipping.read_clip(0)["frames"], plain.read_clip(0)["frames"])  # validation never


def test_flipped_maps_go_with_the_frames(dotted_root, make):
    settings = {"guidance_types": ["depth"], "guidance_input_channels": [1], "center_crop": True}
    plain, flipping = make(dotted_root, **settings), make(dotted_root, **settings, random_flip=True)
    flips = 0
    for epoch in range(8):
        plain.set_epoch(epoch), flipping.set_epoch(epoch)
        item, other = plain[0], flipping[0]
        if not torch.equal(item["frames"], other["frames"]):
            flips += 1
            torch.testing.assert_close(other["guidance"]["depth"], item["guidance"]["depth"].flip(-1))
    assert 0 < flips < 8


def test_what_cannot_be_flipped_is_refused(dotted_root, make, tmp_path):
    def flipping(root, name, channels):
        return make(root, guidance_types=[name], guidance_input_channels=[channels], random_flip=True)

    with pytest.raises(DataError, match=r"poses/a: 4 key points of unknown order.*leave out --random_flip"):
        flipping(dotted_root, "pose", 4)
    with pytest.raises(DataError, match=r"maps of flow may tell left from right.*flow/meta\.json"):
        flipping(dotted_root, "flow", 2)
    root = shutil.copytree(dotted_root, tmp_path / "data")
    (root / "flow" / "meta.json").write_text('{"flippable": true}')
    assert flipping(root, "flow", 2)[0]["guidance"]["flow"].shape == (4, 2, 64, 64)
    (root / "angles").mkdir()
    np.save(root / "angles" / "a.npy", np.zeros((len(list((root / "depth" / "a").iterdir())), 6)))
    with pytest.raises(DataError, match=r"features of angles may tell left from right.*angles/meta\.json"):
        flipping(root, "angles", 6)
    (root / "angles" / "meta.json").write_text('{"flippable": true}')
    assert flipping(root, "angles", 6)[0]["guidance"]["angles"].shape == (4, 6)


def test_maps_of_another_shape_than_the_frame(dotted_root, make, tmp_path):
    root = shutil.copytree(dotted_root, tmp_path / "data")
    for path in (root / "depth" / "a").iterdir():
        cv2.imwrite(str(path), np.zeros((48, 48), np.uint8))
    dataset = make(root, guidance_types=["depth"], guidance_input_channels=[1])
    with pytest.raises(DataError, match=r"depth/a: maps of 48x48 for a video of 192x96; .*aspect"):
        dataset[0]
