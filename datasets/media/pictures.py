"""Pictures as a viewer shows them: profile, orientation, transparency and depth honoured, or named."""

import contextlib
import functools
import io
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

from datasets.packed_files import is_file, open_bytes
from system.errors import DataError
from system.whole_files import check_ordinary

from .colour import to_bt709

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
HEIF_FIX = "save it as a jpg or png; an iPhone takes jpg under Settings, Camera, Formats, Most Compatible"
GREY_MODES = ("1", "L", "LA", "La")
SAME_LEVELS = 2  # a profile that changes no colour by more is sRGB, and nothing is converted
USUAL_GAMMA, SAME_GAMMA = 2.2, 0.05
ORIENTATION_TAG, EXIF_WITHIN = 0x0112, 65_536
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_image(path: str | Path) -> np.ndarray:
    """Return uint8 [H, W, 3], sRGB, as a viewer turns it, on white where transparent. Raises DataError."""
    return read_picture(path)[0]


def read_picture(path: str | Path) -> tuple[np.ndarray, list[str]]:
    """Return (what read_image returns, notes on what is unusual about the file). Raises DataError."""
    path = Path(path)
    if not is_file(path):
        check_ordinary(path)
        problem = "is a folder, not an image" if path.is_dir() else "no such image"
        raise DataError(path, problem, "give a jpg, png or webp file")
    try:
        with open_bytes(path) as file, Image.open(file) as image:
            return _shown(path, image)
    except DataError:  # of the shard that it lies in
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if _is_heif(path):
            raise DataError(path, "is a HEIC picture, whatever its ending", HEIF_FIX) from error
        raise DataError(path, f"is not a readable image ({error})", "replace the file") from error


def _is_heif(path: Path) -> bool:
    with contextlib.suppress(OSError), open_bytes(path) as file:  # it may be that it cannot be opened at all
        head = file.read(12)
        return head[4:8] == b"ftyp" and head[8:] in HEIF_BRANDS
    return False


def _shown(path: Path, image: Image.Image) -> tuple[np.ndarray, list[str]]:
    notes = []
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # viewers show one of a phone's MPO
        notes.append(f"{image.n_frames} frames or pages: the first is taken")
    cicp = _png_codes(image.fp) if image.format == "PNG" else None
    image = _bytes_of(ImageOps.exif_transpose(image))
    pixels = None
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        if pixels.getextrema()[3] != (255, 255):
            notes.append("transparent: shown on white")
    colours, note = _in_srgb(path, image, cicp)
    notes += [note] if note else []
    if pixels is None:
        return np.asarray(colours), notes
    if note:
        pixels = Image.merge("RGBA", (*colours.split(), pixels.getchannel("A")))
    pixels = Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels)
    return np.asarray(pixels.convert("RGB")), notes


def camera_turn(content: bytes) -> int:
    """Return the EXIF orientation of a picture's bytes, 1 to 8; 1: as it is stored."""
    head = content[:EXIF_WITHIN]
    is_webp_with_exif = head[12:16] == b"VP8X" and head[20] & 8
    if b"Exif\0\0" not in head and b"eXIf" not in head and not is_webp_with_exif:
        return 1
    with Image.open(io.BytesIO(content)) as image:
        return image.getexif().get(ORIENTATION_TAG, 1)


def turned_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return [H, W, ...] of an EXIF orientation as it is to be seen."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if rows else 1, :: -1 if columns else 1]


def _bytes_of(image: Image.Image) -> Image.Image:
    """Return grey of 16 bits as 8 bits, rounded: Pillow cuts it off at 255."""
    if not image.mode.startswith("I"):
        return image
    values, transparent = np.asarray(image).astype(np.int64), image.info.get("transparency")
    grey = Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
    if transparent is not None:
        alpha = Image.fromarray((255 * (values != transparent)).astype(np.uint8))
        grey = Image.merge("LA", (grey, alpha))
    grey.info |= {name: image.info[name] for name in ("icc_profile", "gamma", "srgb") if name in image.info}
    return grey


def _in_srgb(path: Path, image: Image.Image, cicp: tuple[int, int] | None) -> tuple[Image.Image, str]:
    """Return (colours as sRGB, without alpha, by the picture's profile; a note where that changes them)."""
    if cicp is not None:
        try:
            conversion = to_bt709(cicp[1], cicp[0])
        except KeyError:
            fix = "save it as an ordinary sRGB picture"
            raise DataError(path, f"primaries of code {cicp[0]} cannot be honoured", fix) from None
        rgb = image.convert("RGB")
        if conversion is None:
            return rgb, ""
        return Image.fromarray(conversion(np.asarray(rgb).astype(np.uint16) * 257)), conversion.note
    profile, is_grey = image.info.get("icc_profile"), image.mode in GREY_MODES
    if profile:
        to_srgb = _profile_conversion(profile)
        if to_srgb is not None and to_srgb.mode in ("RGB", "L" if is_grey else image.mode):
            converted = ImageCms.applyTransform(image.convert(to_srgb.mode), to_srgb.transform)
            return converted, f"ICC profile {to_srgb.name}: converted to sRGB"
    gamma = USUAL_GAMMA * image.info.get("gamma", 1 / USUAL_GAMMA)
    if not profile and "srgb" not in image.info and gamma > 0 and abs(gamma - 1) > SAME_GAMMA:
        levels = np.rint(255 * (np.arange(256) / 255) ** (1 / gamma)).astype(int).tolist()
        return image.convert("RGB").point(3 * levels), f"gamma {gamma / USUAL_GAMMA:.3g}: converted to sRGB"
    return image.convert("RGB"), ""


class _ProfileConversion(NamedTuple):
    """From a profile's colours to sRGB."""

    name: str
    mode: str  # of the pictures that it takes
    transform: ImageCms.ImageCmsTransform


@functools.lru_cache(maxsize=16)
def _profile_conversion(content: bytes) -> _ProfileConversion | None:
    """Return the conversion of an ICC profile; None: sRGB by another name, or damaged, as viewers take it."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[profile.profile.xcolor_space.strip()]
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
        name = ImageCms.getProfileDescription(profile).strip()
    except (ImageCms.PyCMSError, OSError, KeyError, TypeError, ValueError):
        return None
    if mode != "CMYK":
        probe = Image.fromarray(_probe_levels(mode))
        changed = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int)
        if np.abs(changed - np.asarray(probe.convert("RGB"))).max() <= SAME_LEVELS:
            return None
    return _ProfileConversion(name, mode, transform)


def _probe_levels(mode: str) -> np.ndarray:
    """Return uint8 [h, w] or [h, w, 3]: levels of grey, or colours all over the cube."""
    if mode == "L":
        return np.arange(256, dtype=np.uint8)[None]
    levels = np.arange(0, 256, 51, dtype=np.uint8)
    return np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)


def _png_codes(file: BinaryIO) -> tuple[int, int] | None:
    """Return (primaries, transfer) of a PNG's cICP chunk, by H.273's codes, which Pillow does not read.

    Leaves the open file where it is: Pillow reads on there.
    """
    place = file.tell()
    try:
        file.seek(len(PNG_SIGNATURE))
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", header)
            if kind == b"cICP":
                primaries, transfer, *_ = file.read(4)
                return primaries, transfer
            if kind == b"IDAT":
                return None
            file.seek(length + 4, 1)
    finally:
        file.seek(place)
    return None
