"""Colours of a high dynamic range or a wide gamut, as an ordinary display shows them.

Light is counted in units of reference white: 203 nits of an HDR video (ITU-R BT.2408), the white of others.
What is brighter is rolled off by a Moebius curve, as ffmpeg's tonemap filter does it. Codes of transfers and
primaries are those of ITU-T H.273, as FFmpeg and PNG have them.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

BT709, SRGB, PQ, HLG = 1, 13, 16, 18
TRANSFER_NAMES = {8: "linear", 9: "logarithmic", 10: "logarithmic (square root)", PQ: "PQ (SMPTE 2084)",
                  17: "SMPTE 428", HLG: "HLG"}  # fmt: skip
WHITE_NITS, PEAK_NITS = 203.0, 1000.0
HLG_GAMMA = 1.2  # of the whole system, for a display of 1000 nits (BT.2100)
KNEE = 0.8  # light below it stays what it is
DISPLAY_GAMMA = 2.4  # BT.1886
LEVELS = 1 << 16
BAND_ROWS = 64  # converted at once: intermediate values stay in the processor's cache

D65, ILLUMINANT_C, DCI_WHITE = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
PRIMARIES = {  # {code: (name, x and y of red, green, blue, white)}; SD video's (5, 6, 7) count as BT.709's
    BT709: ("BT.709", (0.640, 0.330), (0.300, 0.600), (0.150, 0.060), D65),
    4: ("BT.470 M", (0.670, 0.330), (0.210, 0.710), (0.140, 0.080), ILLUMINANT_C),
    8: ("film", (0.681, 0.319), (0.243, 0.692), (0.145, 0.049), ILLUMINANT_C),
    9: ("BT.2020", (0.708, 0.292), (0.170, 0.797), (0.131, 0.046), D65),
    11: ("DCI-P3", (0.680, 0.320), (0.265, 0.690), (0.150, 0.060), DCI_WHITE),
    12: ("Display P3", (0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65),
    22: ("EBU 3213", (0.630, 0.340), (0.295, 0.605), (0.155, 0.077), D65),
}
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


@dataclass(frozen=True, eq=False)
class ColourConversion:
    """From RGB uint16 [H, W, 3] of other curves or primaries to BT.709, uint8."""

    note: str  # for the user: what is converted
    light: np.ndarray  # float32 [65536], of each level
    matrix: np.ndarray  # float32 [3, 3], light to light
    luminance: np.ndarray | None  # float32 [1, 3], of HLG, whose channels depend on each other
    is_hdr: bool

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        converted = np.empty(pixels.shape, np.uint8)
        for top in range(0, len(pixels), BAND_ROWS):
            converted[top : top + BAND_ROWS] = self._band(pixels[top : top + BAND_ROWS])
        return converted

    def _band(self, pixels: np.ndarray) -> np.ndarray:
        light = self.light[pixels]
        if self.luminance is not None:
            gain = cv2.pow(cv2.transform(light, self.luminance), HLG_GAMMA - 1)
            light *= gain[..., None] * np.float32(PEAK_NITS / WHITE_NITS)
        light = cv2.transform(light, self.matrix)
        if self.is_hdr:
            brightest = light.max(axis=-1, keepdims=True).clip(1e-6)
            light *= rolled_off(brightest) / brightest
        return _display_levels()[(light.clip(0, 1) * (LEVELS - 1) + 0.5).astype(np.uint16)]


@functools.lru_cache
def to_bt709(transfer: int, primaries: int) -> ColourConversion | None:
    """Return the conversion of these codes; None: they are shown as they are. Raises KeyError: unknown."""
    curve = TRANSFER_CURVES.get(transfer)
    if primaries in (0, 2, 3, 5, 6, 7):  # not stated; of SD video, a few levels off
        primaries = BT709
    name, *_ = PRIMARIES[primaries]
    if curve is None and primaries == BT709:
        return None
    is_hdr = transfer in (PQ, HLG)
    notes = [f"transfer {TRANSFER_NAMES[transfer]}: tone-mapped from HDR" if is_hdr else
             f"transfer {TRANSFER_NAMES[transfer]}: converted" if curve else "",
             f"primaries {name}: converted to BT.709" if primaries != BT709 else ""]  # fmt: skip
    signal = np.linspace(0, 1, LEVELS)
    light = curve(signal) if curve else signal**DISPLAY_GAMMA
    to_xyz = _xyz_matrix(primaries)
    return ColourConversion(
        note="; ".join(filter(None, notes)),
        light=light.astype(np.float32),
        matrix=(np.linalg.inv(_xyz_matrix(BT709)) @ to_xyz).astype(np.float32),
        luminance=to_xyz[1:2].astype(np.float32) if transfer == HLG else None,
        is_hdr=is_hdr,
    )


def rolled_off(light: np.ndarray) -> np.ndarray:
    """Return light in 0..1: as it is up to KNEE, then ever closer to 1, which PEAK_NITS reach."""
    peak, knee = PEAK_NITS / WHITE_NITS, KNEE
    start = -(knee**2) * (peak - 1) / (knee**2 - 2 * knee + peak)
    end = (knee**2 - 2 * knee * peak + peak) / (peak - 1)
    scale = (end**2 + 2 * end * knee + knee**2) / (end - start)
    return np.where(light <= knee, light, scale * (light + start) / (light + end)).astype(np.float32)


def _pq_light(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084: a display's light."""
    root = signal ** (1 / 78.84375)
    ratio = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
    return 10_000 / WHITE_NITS * ratio ** (1 / 0.1593017578125)


def _hlg_light(signal: np.ndarray) -> np.ndarray:
    """BT.2100: the scene's light in 0..1, of which the channels together give the display's."""
    high = (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
    return np.where(signal <= 0.5, signal**2 / 3, high)


TRANSFER_CURVES: dict[int, Callable] = {  # all others are shown by the display's own curve
    8: lambda signal: signal,
    9: lambda signal: np.where(signal > 0, 100 ** (signal - 1), 0),
    10: lambda signal: np.where(signal > 0, 100 ** (1.25 * (signal - 1)), 0),
    PQ: _pq_light,
    17: lambda signal: 52.37 / 48 * signal**2.6,
    HLG: _hlg_light,
}  # fmt: skip


@functools.cache
def _display_levels() -> np.ndarray:
    """Return the byte that an ordinary display shows as each of 65,536 levels of light."""
    light = np.arange(LEVELS) / (LEVELS - 1)
    return np.rint(255 * light ** (1 / DISPLAY_GAMMA)).astype(np.uint8)


def _xyz_matrix(primaries: int) -> np.ndarray:
    """Return the matrix from light of these primaries to XYZ under D65 (SMPTE RP 177; Bradford)."""
    _, *points = PRIMARIES[primaries]
    *colours, white = [np.array([x / y, 1, (1 - x - y) / y]) for x, y in points]
    matrix = np.stack(colours, axis=1)
    matrix = matrix * np.linalg.solve(matrix, white)
    target = np.array([D65[0] / D65[1], 1, (1 - D65[0] - D65[1]) / D65[1]])
    adapted = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ target) / (BRADFORD @ white)) @ BRADFORD
    return adapted @ matrix
