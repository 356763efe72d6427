"""A dance put on another body: every bone keeps its direction and takes the length that the other's has.

One ratio, reference over driving, for each part of the body, the same on both sides; the face is moved and
scaled, never warped. Bones hang on the hips' middle, which moves in the scale of the legs. So the legs end
where the driving ones do in that scale: on the reference's ground, and feet that stand do not slide.
"""

from typing import NamedTuple

import numpy as np

from datasets.guidance.openpose import FACE
from datasets.transforms import Size
from system.errors import DataError

from .proportions import (
    DRIVING,
    HIPS,
    NECK,
    REFERENCE,
    Body,
    in_heights,
    measure_body,
    relative_lengths,
)

MIDDLE = -1  # between the hips
# The point on which each of OpenPose's 134 points hangs, and the part whose ratio it takes.
_PARENTS = (
    1, MIDDLE, 1, 2, 3, 1, 5, 6, MIDDLE, 8, 9, MIDDLE, 11, 12, *4 * (0,),
    *3 * (13,), *3 * (10,), *68 * (0,), *21 * (7,), *21 * (4,),
)  # fmt: skip
_SIDE = ("shoulders", "arms", "arms")
_PARTS = (
    "head", "torso", *_SIDE, *_SIDE, *2 * ("hips", "legs", "legs"), *4 * ("face",),
    *6 * ("legs",), *68 * ("face",), *42 * ("arms",),
)  # fmt: skip
HEAD = (14, 15, 16, 17, *range(FACE.start, FACE.stop))  # without the nose

# Ratio of a part over the torso's. Below the least it is not seen at its length (a body turned sideways, an
# arm towards the camera) and has the torso's. Legs that stand are seen so; drawn people have large heads.
BELIEVED = {
    "shoulders": (0.7, 1.5), "hips": (0.7, 1.5), "arms": (0.8, 1.5), "legs": (0.4, 2.0),
    "head": (0.7, 2.0), "face": (0.5, 2.5),
}  # fmt: skip


class BodyFit(NamedTuple):
    """How a dance goes onto another body."""

    ratios: dict[str, float]  # of each part, reference over driving
    own: Body  # the driving dancer's
    other: Body  # the reference's
    notes: tuple[str, ...] = ()  # for the user

    def apply(self, key_points: np.ndarray, size: Size, target_size: Size) -> np.ndarray:
        """Return key points float32 [F, K, 3] in 0..1 of the target's frame; confidence is kept."""
        old, seen = in_heights(key_points, size), key_points[..., 2] > 0
        new = self._moved(old, seen) / [target_size[1] / target_size[0], 1]
        new = np.concatenate([new, key_points[..., 2:]], axis=-1)
        return np.where(seen[..., None], new, 0).astype(np.float32)

    def _moved(self, old: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Return places [F, K, 2] on the other body, of places and whether they are there."""
        middle, new = self._middle(old, seen), np.empty_like(old)
        old, seen = _with_nose(old, seen)
        old_at, new_at = {MIDDLE: middle}, {MIDDLE: self._stood(middle)}
        for point in (NECK, *(point for point in range(old.shape[1]) if point != NECK)):
            parent, ratio = _PARENTS[point], self.ratios[_PARTS[point]]
            new[:, point] = new_at[parent] + ratio * (old[:, point] - old_at[parent])
            # What hangs on an absent point hangs on the one before.
            there = seen[:, point, None]
            old_at[point] = np.where(there, old[:, point], old_at[parent])
            new_at[point] = np.where(there, new[:, point], new_at[parent])
        return new

    def _middle(self, old: np.ndarray, seen: np.ndarray) -> np.ndarray:
        """Return where the hips' middle is [F, 2]; where a hip is absent, by neck and other frames."""
        middle, is_there, has_neck = old[:, HIPS].mean(1), seen[:, HIPS].all(1), seen[:, NECK]
        torso = np.array([0, self.own.lengths["torso"]])
        below = old[:, NECK] + _bridged(middle - old[:, NECK], is_there & has_neck, torso)
        middle = np.where(is_there[:, None], middle, below)
        return _bridged(middle, is_there | has_neck, self.own.hips)

    def _stood(self, middle: np.ndarray) -> np.ndarray:
        """Return where the hips' middle goes: on the other's ground, sideways from where the other stands."""
        start, end = self.own.hips, self.other.hips
        if self.own.ground is not None:
            start, end = np.array([start[0], self.own.ground]), np.array([end[0], self.other.ground])
        return end + self.ratios["legs"] * (middle - start)


def retarget(key_points: np.ndarray, size: Size, reference: np.ndarray, reference_size: Size) -> np.ndarray:
    """Return the dance of key points [F, K, 3] on the reference's body, float32 [F, K, 3].

    key_points: in 0..1 of a frame of size (height, width); reference [K, 3] and the result: of one of
    reference_size. Raises DataError where sizes cannot be told, or half a body would meet a whole one.
    """
    key_points = np.asarray(key_points)
    return fit_body(key_points, size, reference, reference_size).apply(key_points, size, reference_size)


def fit_body(key_points: np.ndarray, size: Size, reference: np.ndarray, reference_size: Size) -> BodyFit:
    """Return how a dance goes onto the reference's body, one fit for the whole dance. See `retarget`."""
    other = measure_body(np.asarray(reference)[None], reference_size, REFERENCE)
    own = measure_body(np.asarray(key_points), size, DRIVING)
    notes = ()
    if own.ground is not None and other.ground is None:
        problem = "shows no leg down to the ankle, and the driving poses are of a whole body"
        fix = "take a picture of the whole person, a video of half a body, or --retarget none"
        raise DataError(REFERENCE, problem, fix)
    if own.ground is None and other.ground is not None:
        notes = ("the driving poses are of half a body: nothing drives the legs of the reference",)
    return BodyFit(body_ratios(own, other), own, other, notes)


def body_ratios(own: Body, other: Body) -> dict[str, float]:
    """Return {part: ratio of its lengths, other's over own}; the torso's for what cannot be told."""
    relative, torso = relative_lengths(own, other), other.lengths["torso"] / own.lengths["torso"]
    if np.isnan(relative["face"]):
        relative["face"] = relative["eyes"]
    ratios = {"torso": torso}
    for part, (least, most) in BELIEVED.items():
        is_believed = relative[part] >= least  # not of NaN
        ratios[part] = torso * (min(relative[part], most) if is_believed else 1.0)
    if own.ground is None or other.ground is None:
        ratios["legs"] = torso
    return ratios


def _bridged(places: np.ndarray, there: np.ndarray, otherwise: np.ndarray) -> np.ndarray:
    """Return places [F, 2] interpolated in time where they are not there; `otherwise` if they never are."""
    frames = np.flatnonzero(there)
    if not len(frames):
        return np.broadcast_to(otherwise, places.shape)
    return np.stack([np.interp(np.arange(len(places)), frames, axis[frames]) for axis in places.T], axis=-1)


def _with_nose(places: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return places and what is there with a nose, on which the head hangs: the head's middle if absent."""
    others = [point for point in HEAD if point < places.shape[1]]
    counts = seen[:, others].sum(1)
    middle = (places[:, others] * seen[:, others, None]).sum(1) / np.maximum(counts, 1)[:, None]
    places, seen, lacks = places.copy(), seen.copy(), ~seen[:, 0]
    places[lacks, 0], seen[lacks, 0] = middle[lacks], counts[lacks] > 0
    return places, seen
