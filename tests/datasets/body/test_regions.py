"""The regions lie where the pixels are, and nowhere that is not surely seen."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import GuidanceDataset, write_video
from datasets.body.regions import region_mask, type_of_person, weight_map
from datasets.guidance.openpose import FACE, HANDS

HEIGHT, WIDTH, SIDE = 128, 192, 24  # of a frame, and of what is drawn at a hand or face, in pixels
CELL = 8  # pixels of a latent's side


PARTS = (*HANDS, FACE)


def points_around(corners: Sequence, confidence: float = 1.0) -> np.ndarray:
    """Return 134 points: of PARTS in squares at (left, top), in pixels; the others in the frame's middle."""
    points = np.tile([0.5, 0.5, 1.0], (134, 1))
    for part, (left, top) in zip(PARTS, corners, strict=True):
        count = part.stop - part.start
        along = np.stack([np.linspace(0, SIDE, count), np.linspace(SIDE, 0, count)], -1)
        points[part, :2] = (along + (left, top)) / (WIDTH, HEIGHT)
        points[part, 2] = confidence
    return points


@pytest.fixture(scope="module")
def marked_root(tmp_path_factory):
    """A video whose left hand, right hand and face are a red, a red and a blue square that move."""
    root = tmp_path_factory.mktemp("marked")
    frames = np.full((10, HEIGHT, WIDTH, 3), 60, np.uint8)
    (root / "poses" / "a").mkdir(parents=True)
    for number, frame in enumerate(frames):
        corners = (48 + 3 * number, 80 - 5 * number), (100, 90 - number), (80, 8 + number)
        for (left, top), colour in zip(corners, ((255, 0, 0), (255, 0, 0), (0, 0, 255)), strict=True):
            frame[top : top + SIDE, left : left + SIDE] = colour
        content = {"keypoints": points_around(corners).tolist()}
        (root / "poses" / "a" / f"{number}.json").write_text(json.dumps(content))
    write_video(root / "videos" / "a.mp4", frames, 8)
    (root / "reference_images").mkdir()
    Image.fromarray(frames[0]).save(root / "reference_images" / "a.png")
    return root


@pytest.mark.parametrize(
    "changes",
    [
        {"fit": "crop", "random_flip": True},
        {"fit": "pad", "random_flip": True, "frame_stride": 2},
        {"fit": "crop", "resolution": (96, 64), "center_crop": True},
        {"fit": "pad", "resolution": (64, 160), "data_format": "image"},
    ],
)
def test_a_region_is_where_its_pixels_are(marked_root, changes):
    keywords = {"resolution": 128, "sequence_length": 4, **changes}
    dataset = GuidanceDataset(marked_root, ["pose"], [134], **keywords)
    flips = set()
    for epoch in range(4 if dataset.random_flip else 2):
        dataset.set_epoch(epoch)
        item = dataset[0]
        size = tuple(side // CELL for side in dataset.resolution)
        points = item["guidance"]["pose"]
        flips.add(bool(points[0, HANDS[0], 1].mean() > points[0, HANDS[1], 1].mean()))  # the left is higher
        for region, channel in (("hands", 0), ("face", 2)):
            mask = region_mask(points, region, size)
            others = [other for other in range(3) if other != channel]
            marked = (item["frames"][:, channel] - item["frames"][:, others].amax(1)) > 1
            cells = marked.unflatten(2, (-1, CELL)).unflatten(1, (-1, CELL)).sum((2, 4))
            assert marked.any() and not (cells * ~mask).any()
            scale = float(marked.flatten(1).sum(1).max() / (SIDE**2 * (2 if region == "hands" else 1))) ** 0.5
            longest = SIDE * scale * 1.4 / CELL + 2.1  # a box and its margins, and cells that are cut
            assert mask.flatten(1).sum(1).max() <= longest**2 * (2 if region == "hands" else 1)
    assert len(flips) == (2 if dataset.random_flip else 1)


def one_frame(**changes) -> torch.Tensor:
    corners = (16, 16), (144, 80), (80, 8)
    return torch.tensor(points_around(corners, **changes), dtype=torch.float32)[None, None]


def test_weights_are_in_the_region_and_one_elsewhere():
    size = (HEIGHT // CELL, WIDTH // CELL)
    weights = weight_map(one_frame(), {"hands": 3.0, "face": 0.5}, size)
    assert weights.shape == (1, 1, 1, *size) and weights.dtype == torch.float32
    expected = torch.ones(size)  # a hand of 24 pixels has a margin of 4.8: 2 cells and 3 and 1 that is cut
    expected[1:6, 1:6] = expected[9:14, 17:22] = 3
    expected[0:5, 9:14] = 0.5
    torch.testing.assert_close(weights[0, 0, 0], expected, atol=0, rtol=0)
    assert torch.equal(weight_map(one_frame(), {"hands": 1.0, "face": 1.0}, size), torch.ones(1, 1, 1, *size))


def test_where_regions_meet_the_larger_weight_counts():
    points = one_frame()
    points[..., HANDS[0], :] = points[..., FACE, :][..., ::3, :][..., :21, :]  # a hand before the face
    for weights in ({"hands": 3.0, "face": 2.0}, {"face": 2.0, "hands": 3.0}):
        weighed = weight_map(points, weights, (16, 24))[0, 0, 0]
        hands = region_mask(points, "hands", (16, 24))[0, 0]
        assert (weighed[hands] == 3).all() and (weighed[~hands] <= 2).all()
        assert (hands & region_mask(points, "face", (16, 24))[0, 0]).any()


def test_what_is_not_surely_seen_has_weight_one():
    unsure, few, absent = one_frame(confidence=0.29), one_frame(), one_frame()
    few[..., 28:134, 2] = 0
    few[..., 92:96, 2] = few[..., 113:117, 2] = 1  # four points of each
    absent[..., 24:, :] = torch.nan
    for points in (unsure, few, absent):
        assert (weight_map(points, {"hands": 5.0, "face": 5.0}, (16, 24)) == 1).all()
    one_hand = one_frame()
    one_hand[..., HANDS[1], 2] = 0.2
    mask = region_mask(one_hand, "hands", (16, 24))[0, 0]
    assert mask[:8, :8].any() and not mask[8:, 8:].any()


def test_a_region_is_cut_at_the_frame():
    points = one_frame()
    points[..., HANDS[0], :2] -= torch.tensor([24 / WIDTH, 24 / HEIGHT])
    mask = region_mask(points, "hands", (16, 24))[0, 0]
    assert mask[:3, :3].all() and mask[:8, :8].sum() == 9


def test_the_type_of_the_person_is_found():
    assert type_of_person({"music": (35,), "depth": (1, 64, 64), "pose": (134, 3)}) == "pose"
    assert type_of_person({"spectrum": (35, 8), "own_points": (92, 3)}) == "own_points"
    assert type_of_person({"music": (35, 8), "depth": (1, 64, 64)}) is None
