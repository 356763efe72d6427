"""Pictures of every kind that cameras and editors write, against known colours and other libraries."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from datasets import DataError
from datasets.media.pictures import camera_turn, read_image, read_picture, turned_upright

# XYZ of the primaries under D50, as profiles have them.
DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE_RGB = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
SRGB = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))
SRGB_CURVE = [((x + 0.055) / 1.055) ** 2.4 if x > 0.04045 else x / 12.92 for x in np.linspace(0, 1, 1024)]


def profile(name, primaries, curve):
    """Return a minimal ICC profile: of three primaries or of grey. curve: a gamma or a table."""
    values = [round(curve * 256)] if isinstance(curve, float) else [round(65_535 * value) for value in curve]
    trc = b"curv" + struct.pack(f">II{len(values)}H", 0, len(values), *values)
    text = name.encode() + b"\0"
    description = b"desc" + struct.pack(">II", 0, len(text)) + text + bytes(78)
    tags = {b"desc": description, b"wtpt": xyz(0.9642, 1, 0.8249), b"cprt": b"text" + bytes(4) + b"none\0"}
    for letter, primary in zip(b"rgb", primaries or (), strict=False):
        tags |= {bytes([letter]) + b"XYZ": xyz(*primary), bytes([letter]) + b"TRC": trc}
    if not primaries:
        tags[b"kTRC"] = trc
    table, body, place = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", place + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = place + len(body)
    space = b"RGB " if primaries else b"GRAY"
    header = struct.pack(
        ">I4sI4s4s4s12s4s", size, b"lcms", 0x02100000, b"mntr", space, b"XYZ ", bytes(12), b"acsp"
    )
    header = header.ljust(68, b"\0") + struct.pack(">III", *(round(65_536 * v) for v in (0.9642, 1, 0.8249)))
    return header.ljust(128, b"\0") + table + body


def xyz(*values):
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(65_536 * value) for value in values))


P3, ADOBE = profile("Display P3", DISPLAY_P3, SRGB_CURVE), profile("Adobe RGB (1998)", ADOBE_RGB, 563 / 256)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize(
    ("icc", "name", "stored", "shown"),
    [
        (
            P3,
            "Display P3",
            (234, 51, 35),
            (255, 0, 0),
        ),  # as CSS Color 4 has color(display-p3 0.917 0.2 0.139)
        (P3, "Display P3", (120, 120, 120), (120, 120, 120)),
        (ADOBE, "Adobe RGB (1998)", (219, 0, 0), (255, 0, 0)),
        (ADOBE, "Adobe RGB (1998)", (144, 255, 60), (0, 255, 0)),
    ],
)
def test_profiles_of_colour(tmp_path, suffix, icc, name, stored, shown):
    path = tmp_path / f"a.{suffix}"
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(suffix, {})
    Image.new("RGB", (16, 16), stored).save(path, icc_profile=icc, **options)
    pixels, notes = read_picture(path)
    np.testing.assert_allclose(pixels[8, 8].astype(int), shown, atol=4 if suffix == "jpg" else 3)
    assert notes == [f"ICC profile {name}: converted to sRGB"]


def test_profile_of_grey(tmp_path):
    Image.new("L", (8, 8), 100).save(tmp_path / "a.png", icc_profile=profile("Gamma 1.0", None, 1.0))
    shown = 255 * (1.055 * (100 / 255) ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[0, 0].astype(int), round(shown), atol=1)


@pytest.mark.parametrize(
    "icc",
    [
        profile("c2", SRGB, SRGB_CURVE),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        b"damaged",
    ],
    ids=["c2", "built in", "damaged"],
)
def test_srgb_by_any_name_changes_no_bit(tmp_path, icc):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=icc)
    shown, notes = read_picture(tmp_path / "a.png")
    assert np.array_equal(shown, pixels) and notes == []


def test_a_profile_of_another_kind_of_picture(tmp_path):
    """An RGB profile on a grey picture counts; one of grey on colours is none."""
    Image.new("L", (4, 4), 200).save(tmp_path / "a.png", icc_profile=profile("1.0", DISPLAY_P3, 1.0))
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == pytest.approx([229] * 3, abs=2)
    Image.new("RGB", (4, 4), (200, 0, 0)).save(tmp_path / "b.png", icc_profile=profile("1.0", None, 1.0))
    assert read_image(tmp_path / "b.png")[0, 0].tolist() == [200, 0, 0]


@pytest.mark.parametrize("shape", [(32, 32), (32, 32, 3), (32, 32, 4)])
def test_sixteen_bits(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 65_536, shape).astype(np.uint16)
    values[..., 3:] = 65_535
    cv2.imwrite(str(tmp_path / "a.png"), values)
    theirs = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_ANYDEPTH) / 257
    assert np.abs(read_image(tmp_path / "a.png") - theirs).max() <= 1


def test_transparency(tmp_path):
    """Of colours, grey and palettes, by a channel or by one colour: on white, half of it half."""
    palette = Image.new("P", (4, 4))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    pictures = {
        "rgba": (Image.new("RGBA", (4, 4), (200, 0, 0, 128)), {}, [227, 127, 127]),
        "grey": (Image.new("LA", (4, 4), (0, 128)), {}, [127] * 3),
        "palette": (palette, {"transparency": 0}, [255] * 3),
        "opaque palette": (palette, {"transparency": 1}, [0] * 3),
        "colour": (Image.new("RGB", (4, 4), (9, 9, 9)), {"transparency": (9, 9, 9)}, [255] * 3),
        "grey of 16 bits": (
            Image.fromarray(np.full((4, 4), 700, np.uint16)),
            {"transparency": 700},
            [255] * 3,
        ),
    }
    for name, (picture, options, shown) in pictures.items():
        picture.save(tmp_path / "a.png", **options)
        pixels, notes = read_picture(tmp_path / "a.png")
        np.testing.assert_allclose(pixels[0, 0].astype(int), shown, atol=1, err_msg=name)
        assert notes == ([] if name == "opaque palette" else ["transparent: shown on white"])


def test_transparency_with_a_profile(tmp_path):
    Image.new("RGBA", (4, 4), (234, 51, 35, 128)).save(tmp_path / "a.png", icc_profile=P3)
    np.testing.assert_allclose(read_image(tmp_path / "a.png")[0, 0].astype(int), (255, 127, 127), atol=3)


def test_printing_colours(tmp_path):
    """A jpg of CMYK without a profile: as OpenCV has it."""
    Image.new("CMYK", (16, 16), (10, 100, 200, 30)).save(tmp_path / "a.jpg", quality=100)
    theirs = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_allclose(read_image(tmp_path / "a.jpg").astype(int), theirs, atol=2)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations(tmp_path, suffix, orientation):
    """As OpenCV turns a jpg, whichever file says so."""
    stored = np.zeros((16, 24, 3), np.uint8)
    stored[:8, :8], stored[8:, :8] = 250, 120
    picture = Image.fromarray(stored)
    exif = picture.getexif()
    exif[0x0112] = orientation
    for name in ("a.jpg", f"b.{suffix}"):
        picture.save(tmp_path / name, exif=exif)
    theirs = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR_RGB)
    content = (tmp_path / f"b.{suffix}").read_bytes()
    for shown in (read_image(tmp_path / f"b.{suffix}"), turned_upright(stored, camera_turn(content))):
        assert shown.shape == theirs.shape and np.abs(shown.astype(int) - theirs).mean() < 6


def png_with(path, kind, content, picture=None):
    chunks = PngImagePlugin.PngInfo()
    chunks.add(kind, content)
    (picture or Image.new("RGB", (4, 4), (100, 100, 100))).save(path, pnginfo=chunks)
    return path


def test_a_png_of_another_gamma(tmp_path):
    pixels, notes = read_picture(png_with(tmp_path / "a.png", b"gAMA", struct.pack(">I", 100_000)))
    assert pixels[0, 0, 0] == round(255 * (100 / 255) ** (1 / 2.2)) and "gamma 1" in notes[0]
    usual = png_with(tmp_path / "b.png", b"gAMA", struct.pack(">I", 45_455))
    assert read_picture(usual)[0][0, 0, 0] == 100 and read_picture(usual)[1] == []
    grey = Image.fromarray(np.full((4, 4), 257 * 100, np.uint16))
    of_16_bits = png_with(tmp_path / "c.png", b"gAMA", struct.pack(">I", 100_000), grey)
    assert np.array_equal(read_image(of_16_bits), pixels)


def test_a_png_of_high_dynamic_range(tmp_path):
    """cICP: PQ of BT.2020. 58 % of the signal are reference white."""
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4), (148, 148, 148)).save(path)
    content, kind = path.read_bytes(), b"cICP" + bytes([9, 16, 0, 1])
    chunk = struct.pack(">I", 4) + kind + struct.pack(">I", zlib.crc32(kind))
    path.write_bytes(content[:33] + chunk + content[33:])
    pixels, notes = read_picture(path)
    assert 240 <= pixels[0, 0, 0] <= 248 and notes[0].startswith("transfer PQ (SMPTE 2084): tone-mapped")


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_an_animation_is_named(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), (80 * number, 0, 0)) for number in range(3)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    pixels, notes = read_picture(tmp_path / f"a.{suffix}")
    assert pixels.max() == 0 and notes == ["3 frames or pages: the first is taken"]


def test_heic_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(DataError, match=r"a\.jpg: is a HEIC picture, whatever its ending; save it as a jpg"):
        read_image(tmp_path / "a.jpg")


def test_what_cannot_be_opened_is_one_message(tmp_path, monkeypatch):
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(Path, "open", refuse)  # nobody may read it, root in a container may
    with pytest.raises(DataError, match=r"a\.png: is not a readable image \(.*Permission denied"):
        read_picture(tmp_path / "a.png")
