"""Geometry in numbers, reference pictures and what CLIP is given."""

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import DataError
from datasets.media.pictures import read_image
from datasets.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    ClipTransform,
    clip_image_transform,
    make_transform,
    person_box,
    reference_transform,
    to_signed,
)


@pytest.mark.parametrize(
    ("source", "output", "fit", "inner", "offset"),
    [
        ((640, 360), (512, 512), "crop", (910, 512), (-199, 0)),
        ((640, 360), (512, 512), "pad", (512, 288), (0, 112)),
        ((360, 640), (512, 512), "crop", (512, 910), (0, -199)),
        ((100, 100), (512, 512), "crop", (512, 512), (0, 0)),
        ((128, 128), (128, 64), "pad", (64, 64), (32, 0)),
    ],
)
def test_where_the_frame_goes(source, output, fit, inner, offset):
    assert make_transform(source, output, fit=fit) == ClipTransform(output, inner, offset)


def test_crop_keeps_the_person_where_it_fits():
    person = (0.1, 0.6, 0.5, 0.95)  # low in an upright frame
    for seed in range(30):
        transform = make_transform(
            (200, 100), (100, 100), fit="crop", person=person, generator=np.random.default_rng(seed)
        )
        assert transform.offset[1] == 0 and -120 <= transform.offset[0] <= -90
    # Too tall: its middle is kept.
    tall = make_transform((200, 100), (100, 100), fit="crop", person=(0.1, 0.0, 0.5, 0.8))
    assert tall.offset == (-30, 0)


def test_person_box_is_of_present_points_in_the_frame():
    points = np.array([[[0.2, 0.3, 1], [0.9, 1.4, 0.5], [-5, -5, 0]], [[0.4, 0.1, 1], [0, 0, 0], [0, 0, 0]]])
    assert person_box(points) == pytest.approx((0.2, 0.1, 0.9, 1.0))
    assert person_box(np.zeros((2, 3, 3))) is None


def test_same_size_changes_no_pixel():
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    transform = make_transform((40, 30), (40, 30))
    assert torch.equal(transform.frames(frames), to_signed(frames))
    assert to_signed(np.array([[[0, 255, 51]]], np.uint8)).flatten().tolist() == pytest.approx([-1, 1, -0.6])


def test_shrinking_averages():
    """Resampling that skipped pixels would turn fine stripes into one of their colours."""
    stripes = np.tile(np.array([0, 255], np.uint8), 200)[None, :, None].repeat(400, 0).repeat(3, 2)
    small = make_transform((400, 400), (50, 50)).image(stripes)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 2


def test_reference_is_fitted_about_its_middle():
    picture = np.zeros((100, 300, 3), np.uint8)
    picture[:, 100:200] = 255
    assert (reference_transform(picture, 50, "crop") > 0.9).float().mean() > 0.95
    padded = reference_transform(Image.fromarray(picture), (50, 50), "pad")
    assert padded.shape == (3, 50, 50) and (padded[:, :16] == -1).all() and padded.max() == 1


def test_clip_image_is_that_of_clips_own_processor():
    transformers = pytest.importorskip("transformers")
    picture = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    processor = transformers.CLIPImageProcessorPil()
    expected = processor(Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    for given in (picture, Image.fromarray(picture), to_signed(picture)):
        np.testing.assert_allclose(clip_image_transform(given), expected, atol=1e-5)


def test_clip_image_of_an_even_grey():
    image = clip_image_transform(np.full((64, 32, 3), 128, np.uint8))
    assert image.shape == (3, 224, 224) and image.dtype == torch.float32
    np.testing.assert_allclose(image[:, 5, 7], (128 / 255 - np.array(CLIP_MEAN)) / CLIP_STD, atol=1e-5)


def test_camera_orientation_and_transparency(tmp_path):
    picture = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (20, 10, 3)
    Image.new("RGBA", (4, 4), (200, 0, 0, 0)).save(tmp_path / "b.png")
    assert (read_image(tmp_path / "b.png") == 255).all()
    Image.new("L", (4, 4), 7).save(tmp_path / "c.webp", lossless=True)
    assert read_image(tmp_path / "c.webp").tolist() == [[[7] * 3] * 4] * 4


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_unreadable_picture_is_named(tmp_path, content):
    path = tmp_path / "a b.png"
    if content is None:
        Image.new("RGB", (200, 200)).save(path)
        content = path.read_bytes()[:60]
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a b\.png: is not a readable image"):
        read_image(path)
    with pytest.raises(DataError, match="no such image"):
        read_image(tmp_path / "none.png")
