"""How a body is built, from key points of a person who stands: its size, its proportions, its ground.

A camera shows a limb at its full length only where it lies in the picture's plane. So lengths are taken from
frames in which the person stands upright, of arms from those in which they are longest, and of both sides the
longer one counts. All lengths are in heights of the frame, so that frames of any shape compare.
"""

from typing import NamedTuple

import numpy as np

from datasets.guidance.openpose import FACE, OPENPOSE_COUNTS
from datasets.transforms import Size
from system.errors import DataError

NECK, HIPS, ANKLES = 1, [8, 11], [10, 13]
LIMBS = {"arms": ((2, 3, 4), (5, 6, 7)), "legs": ((8, 9, 10), (11, 12, 13))}
BONES = {"shoulders": (2, 5), "hips": (8, 11), "head": (1, 0), "eyes": (14, 15)}

REFERENCE, DRIVING = "reference pose", "driving poses"  # of whom messages speak

SEEN = 0.3  # confidence from which a point is measured
# Quantiles of lengths over a track; of other parts the median. Arms lie in the picture's plane now and then;
# legs are stretched now and then, as those of a reference are.
LONG = {"arms": 0.75, "legs": 0.75}
UPRIGHT = np.cos(np.radians(30))  # of the torso against the vertical
BENT = 0.35  # torso over legs: less is a torso that leans towards the camera, or away from it
STRAIGHT = 0.9  # hip to ankle over thigh and shin, of a leg that stands
SHORTENED = 0.55  # thigh over shin or shin over thigh: less is a leg bent towards the camera, or away from it
FACING, WIDE = 0.75, 0.9  # at least so much of that quantile of the shoulders' width
SMOOTH_FRAMES = 25  # of standing, about a frame, whose median torso is the body's size there
FACE_SEEN = 0.75  # of the face's points, for its size to be told


class Body(NamedTuple):
    """What is measured of a person, in heights of the frame."""

    lengths: dict[str, float]  # of torso, LIMBS, BONES and face; NaN where a part is not seen
    hips: np.ndarray  # [2], their middle as the person stands
    ground: float | None  # y of the ankles; None: half a body, without legs down to them


def in_heights(key_points: np.ndarray, size: Size) -> np.ndarray:
    """Return places float64 [..., K, 2] in heights of the frame of size (height, width)."""
    return np.asarray(key_points, np.float64)[..., :2] * [size[1] / size[0], 1]


def check_order(key_points: np.ndarray, whose: str) -> None:
    if key_points.shape[-2:] not in [(count, 3) for count in OPENPOSE_COUNTS]:
        problem = f"{key_points.shape[-2]} key points of unknown order"
        raise DataError(whose, problem, f"detect them in one of OpenPose's orders {OPENPOSE_COUNTS}")


def measure_body(key_points: np.ndarray, size: Size, whose: str) -> Body:
    """Return the body of the person in key points [F, K, 3], in 0..1 of a frame of size (height, width).

    whose: REFERENCE or DRIVING. Raises DataError where no frame shows neck and
    hips, an upright torso, or, of a person with legs, one who stands.
    """
    check_order(key_points, whose)
    places, seen = in_heights(key_points, size), key_points[..., 2] >= SEEN
    lengths = _lengths(places, seen)
    has_torso = ~np.isnan(lengths["torso"])
    if not has_torso.any():
        problem = "the neck or a hip is not seen" + " in any frame" * (len(seen) > 1)
        raise DataError(whose, problem, "show the person from the head to below the hips, or --retarget none")
    middle = places[:, HIPS].mean(1)  # [F, 2]
    has_legs = bool((has_torso & ~np.isnan(lengths["legs"])).sum() >= has_torso.sum() / 2)
    frames = _standing(places, seen, lengths, has_legs, whose)
    # A camera may zoom: lengths are compared with the torso's of about that time.
    size_at = np.interp(np.arange(len(places)), frames, _smooth(lengths["torso"][frames]))
    usual = float(np.median(size_at[frames]))
    found = {}
    for part, values in lengths.items():
        some = (values / size_at) if part == "arms" else (values / size_at)[frames]
        some = some[~np.isnan(some)]
        found[part] = usual * float(np.quantile(some, LONG.get(part, 0.5))) if len(some) else np.nan
    ground = np.where(seen[frames][:, ANKLES], places[frames][:, ANKLES, 1], -np.inf).max(1)
    return Body(found, np.median(middle[frames], 0), float(np.median(ground)) if has_legs else None)


def relative_lengths(own: Body, other: Body) -> dict[str, float]:
    """Return {part: other's length over own, by the torso's}, NaN where either is not seen; torso: 1."""
    torso = other.lengths["torso"] / own.lengths["torso"]
    return {part: other.lengths[part] / length / torso for part, length in own.lengths.items()}


def _lengths(places: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
    """Return {part: its length in each frame [F], NaN where it is not seen}."""

    def bone(first: int, second: int) -> np.ndarray:
        length = np.linalg.norm(places[:, first] - places[:, second], axis=-1)
        return np.where(seen[:, first] & seen[:, second] & (length > 0), length, np.nan)

    middle = places[:, HIPS].mean(1)
    torso = np.linalg.norm(places[:, NECK] - middle, axis=-1)
    found = {"torso": np.where(seen[:, [NECK, *HIPS]].all(1) & (torso > 0), torso, np.nan)}
    found |= {part: bone(*ends) for part, ends in BONES.items()}
    for part, sides in LIMBS.items():
        # fmax: of the two sides the longer bone, or the one that is seen.
        found[part] = sum(np.fmax(*(bone(*side[joint : joint + 2]) for side in sides)) for joint in (0, 1))
    found["face"] = _spread(places[:, FACE], seen[:, FACE])
    return found


def _spread(places: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return the root mean square distance of points from their middle [F], NaN where too few are seen."""
    counts = seen.sum(1)
    enough = counts >= max(1, FACE_SEEN * seen.shape[1])
    share = (seen / np.maximum(counts, 1)[:, None])[..., None]  # [F, n, 1]
    middle = (share * places).sum(1, keepdims=True)
    spread = np.sqrt((share * (places - middle) ** 2).sum((1, 2)))
    return np.where(enough & (spread > 0), spread, np.nan)


def _standing(
    places: np.ndarray, seen: np.ndarray, lengths: dict[str, np.ndarray], has_legs: bool, whose: str
) -> np.ndarray:
    """Return the frames in which the person stands, those that face the camera. Raises DataError."""
    down = places[:, HIPS].mean(1) - places[:, NECK]
    fits = ~np.isnan(lengths["torso"]) & (down[:, 1] >= UPRIGHT * np.linalg.norm(down, axis=-1))
    fits &= ~(lengths["torso"] < BENT * lengths["legs"])  # NaN: legs are not seen
    where = "in no frame" if len(places) > 1 else "not"
    if not fits.any():
        problem = f"the torso is {where} upright: sizes cannot be told of a person who lies or bends over"
        raise DataError(whose, problem, _fix(whose))
    if has_legs:
        fits &= np.any([_is_standing_leg(places[:, leg], seen[:, leg]) for leg in LIMBS["legs"]], axis=0)
        if not fits.any():
            problem = f"the person does {where} stand: legs that are bent towards the camera tell no length"
            raise DataError(whose, problem, _fix(whose))
    width = lengths["shoulders"] / lengths["torso"]
    if not np.isnan(width[fits]).all():
        width = np.nan_to_num(width)
        fits &= width >= FACING * np.quantile(width[fits], WIDE)
    return np.flatnonzero(fits)


def _is_standing_leg(leg: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return whether a leg [F, 3 (hip, knee, ankle), 2] is stretched out downwards, bool [F]."""
    thigh, shin = np.linalg.norm(np.diff(leg, axis=1), axis=-1).T
    whole = np.linalg.norm(leg[:, 2] - leg[:, 0], axis=-1)
    is_down = leg[:, 2, 1] - leg[:, 0, 1] >= UPRIGHT * whole
    is_long = np.minimum(thigh, shin) >= SHORTENED * np.maximum(thigh, shin)
    return seen.all(1) & is_down & is_long & (whole >= STRAIGHT * (thigh + shin)) & (whole > 0)


def _fix(whose: str) -> str:
    if whose == REFERENCE:
        return "take a picture of the person standing, or --retarget none"
    return "choose a part of the video in which the dancer stands at some time, or --retarget none"


def _smooth(values: np.ndarray) -> np.ndarray:
    """Return values [n] as the median of those around."""
    around = np.pad(values, SMOOTH_FRAMES // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(around, SMOOTH_FRAMES), axis=-1)
