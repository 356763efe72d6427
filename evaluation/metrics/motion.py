"""Does a pose track move as a dancer does? Numbers of motion alone, to be read beside those of true dances.

No frame of a generated dance has to be where the true one is: another dance to the same song is right, too.
So what is held against the truth is how tracks move: how fast and how smoothly, whether bones keep their
lengths and feet their places, and how the kinetics of windows are distributed (`fid_k`). All lengths are in
torso lengths of the dancer, so that tracks of any size in the frame compare; all times in seconds. Key points
are of OpenPose's order; its 14 joints of the body without eyes and ears count. Whether the dance follows the
beat is told by `music.py`.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from datasets.guidance.openpose import BODY_LIMBS, OPENPOSE_COUNTS
from system.errors import UserError

from .distributions import frechet_distance
from .music import JOINTS
from .pose import HIPS, NECK, openpose_points, present_points

ARMS = ((2, 3), (3, 4), (5, 6), (6, 7))  # bones: pairs of joints
BONES = tuple(limb for limb in BODY_LIMBS if max(limb) < JOINTS.stop)
ANKLES = [10, 13]
WINDOW_SECONDS = 4.0  # of kinetics, overlapping by half
PLANTED = 0.05  # torso lengths above the lowest place of a foot within half a second either side
OVERLONG = 1.05  # times the training data's 99th percentile
NUM_DIRECTIONS = 8  # of kinetics: a Frechet distance needs several windows for each
STILL = 1e-3  # squared speed below which nothing moves: a thirtieth of a torso length per second


class Motion(NamedTuple):
    """A track's joints, float64 [F, 14, 2] in torso lengths, y down, NaN where absent; frames per second."""

    places: np.ndarray
    frame_rate: float

    def change(self, order: int) -> np.ndarray:
        """Return the places' derivative of an order, [F - order, 14, 2] per second^order."""
        return np.diff(self.places, order, axis=0) * self.frame_rate**order

    def windows(self, seconds: float = WINDOW_SECONDS) -> list["Motion"]:
        """Return the windows of so many seconds, overlapping by half; all of a shorter track."""
        length = min(round(seconds * self.frame_rate), len(self.places))
        starts = range(0, len(self.places) - length + 1, max(1, length // 2))
        return [self._replace(places=self.places[start : start + length]) for start in starts]


def torso_length(key_points: np.ndarray) -> float:
    """Return the median length from neck to mid-hip of key points [F, K, 3], in their unit.

    Raises UserError where no frame shows them, and for points of unknown order.
    """
    points = _in_order(key_points)
    seen = points[present_points(points)[:, [NECK, *HIPS]].all(axis=1)]
    lengths = np.linalg.norm(seen[:, NECK, :2] - seen[:, HIPS, :2].mean(axis=1), axis=-1)
    if not (lengths > 0).any():
        raise UserError("no frame shows neck and hips; motion is measured in torso lengths")
    return float(np.median(lengths[lengths > 0]))


def motion_of(key_points: np.ndarray, frame_rate: float, torso: float | None = None) -> Motion:
    """Return the motion of key points float [F, K, 3]: x and y in one unit, confidence (0: absent).

    torso: the dancer's torso length in that unit; that of the reference pose or of the true track for a
    generated one, which may have bones of other lengths. None: the track's own. Raises UserError.
    """
    torso = torso or torso_length(key_points)
    points = _in_order(key_points)[:, JOINTS]
    is_there = present_points(points)[..., None]
    return Motion(np.where(is_there, points[..., :2] / torso, np.nan), frame_rate)


# ---- one track ----


def speed(motion: Motion) -> float:
    """Return the joints' mean speed, in torso lengths per second."""
    return float(_mean(np.linalg.norm(motion.change(1), axis=-1)))


def jerk(motion: Motion) -> float:
    """Return the mean size of the joints' third derivative, in torso lengths per second^3.

    A trembling track has several times the truth's, a mean one less. It depends on the frame rate: compare
    only tracks of one rate.
    """
    return float(_mean(np.linalg.norm(motion.change(3), axis=-1)))


def bone_lengths(motion: Motion, bones: Sequence[tuple[int, int]] = BONES) -> np.ndarray:
    """Return the bones' lengths [F, number of bones], NaN where an end is absent."""
    first, second = np.array(bones).T
    return np.linalg.norm(motion.places[:, first] - motion.places[:, second], axis=-1)


def bone_spread(motion: Motion, bones: Sequence[tuple[int, int]] = BONES) -> float:
    """Return the standard deviation of a bone's length over time, in torso lengths, averaged over bones.

    0 for a drawn dancer's arms; bones seen by a camera grow short as they turn towards it, so read it beside
    the truth's.
    """
    lengths = bone_lengths(motion, bones)
    return float(_mean(np.sqrt(_mean((lengths - _mean(lengths, 0)) ** 2, 0))))


def bone_limits(training: Sequence[Motion]) -> np.ndarray:
    """Return the longest plausible length of each bone [13]: 1.05 times the tracks' 99th percentile."""
    lengths = np.concatenate([bone_lengths(one) for one in training])
    columns = [column[~np.isnan(column)] for column in lengths.T]
    return np.array([OVERLONG * np.percentile(some, 99) if len(some) else np.inf for some in columns])


def overlong_share(motion: Motion, limits: np.ndarray) -> float:
    """Return the share of the bones, over all frames, that are longer than their limits, 0..1."""
    lengths = bone_lengths(motion)
    return float(_mean(np.where(np.isnan(lengths), np.nan, lengths > limits)))


def foot_skate(motion: Motion) -> float:
    """Return how fast planted feet slide sideways, in torso lengths per second; a foot that stands has 0.

    Planted is an ankle within 0.05 torso lengths of the lowest place that either has within half a second
    before or after, in both frames of a step. A camera that follows the dancer moves the feet, too, and so
    does a step towards it: read it beside the truth's.
    """
    ankles = motion.places[:, ANKLES]
    reach = max(1, round(motion.frame_rate / 2))
    lower = np.where(np.isnan(ankles[..., 1]), -np.inf, ankles[..., 1])
    around = np.pad(lower.max(axis=1), reach, constant_values=-np.inf)
    ground = np.lib.stride_tricks.sliding_window_view(around, 2 * reach + 1).max(axis=1)
    is_planted = lower >= ground[:, None] - PLANTED
    sideways = np.abs(np.diff(ankles[..., 0], axis=0)) * motion.frame_rate
    return float(_mean(np.where(is_planted[1:] & is_planted[:-1], sideways, np.nan)))


def seam_ratio(motion: Motion, borders: Sequence[int]) -> float:
    """Return the mean speed into the frames at which a sampler's window begins over that elsewhere.

    About 1 without seams; beats of the music may fall on borders, so read it beside the truth's with the same
    borders. NaN without borders. Windows that fade into each other over many frames are not seen.
    """
    speeds = _mean(np.linalg.norm(motion.change(1), axis=-1), 1)
    at_border = np.isin(np.arange(1, len(speeds) + 1), list(borders))
    return _ratio(_mean(speeds[at_border]), _mean(speeds[~at_border]))


# ---- sets of tracks ----


def kinetic_features(motion: Motion) -> np.ndarray:
    """Return the logarithms of mean squared speed across, speed up and down, and acceleration, [14 * 3].

    Of each joint, over the whole of a window; NaN of a joint that is never seen.
    """
    across, upwards = np.moveaxis(motion.change(1) ** 2, -1, 0)
    squares = (across, upwards, (motion.change(2) ** 2).sum(axis=-1))
    return np.log([_mean(square, 0) + STILL for square in squares]).ravel()


class KineticSpace(NamedTuple):
    """The scale on which kinetics are compared, and their principal directions [NUM_DIRECTIONS, 42]."""

    mean: np.ndarray
    scale: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, windows: Sequence[Motion]) -> "KineticSpace":
        """Return the space of these windows, those of the training data where they are at hand."""
        features = np.array([kinetic_features(one) for one in windows])
        mean = np.nan_to_num(_mean(features, 0))
        scale = np.nan_to_num(np.sqrt(_mean((features - mean) ** 2, 0)))
        space = cls(mean, np.where(scale > 1e-6, scale, 1.0), np.zeros((0, len(mean))))
        _, _, directions = np.linalg.svd(space.scaled(windows), full_matrices=False)
        return space._replace(directions=directions[:NUM_DIRECTIONS])

    def scaled(self, windows: Sequence[Motion]) -> np.ndarray:
        """Return z-scored kinetics [N, 42]; a joint that is not seen is an average one."""
        features = np.array([kinetic_features(one) for one in windows])
        return np.nan_to_num((features - self.mean) / self.scale, nan=0.0)


def fid_k(windows: Sequence[Motion], others: Sequence[Motion], space: KineticSpace) -> float:
    """Return the Frechet distance of the kinetics of two sets of windows; 0 is best.

    FID_k of AI Choreographer (arXiv:2101.08779) in 2D: log mean squares instead of its energies, in the 8
    principal directions of the training data's. It falls as windows are added: read it beside the truth's two
    halves, another dance, noise and a still. NaN with fewer than two windows.
    """
    return frechet_distance(*(space.scaled(some) @ space.directions.T for some in (windows, others)))


def diversity(windows: Sequence[Motion], space: KineticSpace) -> float:
    """Return the mean distance of z-scored kinetics between two different windows: 0 where all move alike.

    Root mean square over the features: 1.1 to 1.4 for the windows of the space itself.
    """
    features = space.scaled(windows)
    squares = ((features[:, None] - features[None]) ** 2).mean(axis=-1)
    num_pairs = len(features) * (len(features) - 1)
    return float(np.sqrt(squares).sum() / num_pairs) if num_pairs else float("nan")


def apart(tracks: Sequence[Motion]) -> float:
    """Return the joints' mean distance between two tracks of one song, in torso lengths, over all pairs."""
    pairs = itertools.combinations([track.places for track in tracks], 2)
    return float(_mean([_mean(np.linalg.norm(first - second, axis=-1)) for first, second in pairs]))


def nearest_window(window: Motion, training: Sequence[Motion]) -> float:
    """Return the distance to the nearest of the training windows: is it a copy?

    Root mean square over joints and frames of places relative to the neck, in torso lengths. Windows of other
    lengths are passed over. Read it beside that of held-out true windows.
    """
    own, *others = (one.places - one.places[:, [NECK]] for one in (window, *training))
    same = (one for one in others if len(one) == len(own))
    return min((float(_mean(((own - one) ** 2).sum(axis=-1)) ** 0.5) for one in same), default=float("nan"))


def beside_truth(
    generated: Sequence[Motion],
    truth: Sequence[Motion],
    training: Sequence[Motion] = (),
    window_seconds: float = WINDOW_SECONDS,
) -> dict[str, float]:
    """Return {metric: value} of generated tracks and of the true ones of the same songs.

    speed, jerk and bone_spread are relative to the truth's: 1 is as it moves. foot_skate, overlong and
    diversity have the truth's own beside them, NAME_truth; fid_k is the distance to the truth. training:
    tracks that give the scale of kinetics and the limits of bones; without them the truth does.
    """
    found, sides = {}, (("", generated), ("_truth", truth))
    for measure in (speed, jerk, bone_spread):
        own, true = (float(_mean([measure(one) for one in tracks])) for _, tracks in sides)
        found[measure.__name__] = _ratio(own, true)
    cut = lambda tracks: [window for one in tracks for window in one.windows(window_seconds)]  # noqa: E731
    limits, space = bone_limits(training or truth), KineticSpace.of(cut(training or truth))
    found["fid_k"] = fid_k(cut(generated), cut(truth), space)
    for name, tracks in sides:
        found[f"foot_skate{name}"] = float(_mean([foot_skate(one) for one in tracks]))
        found[f"overlong{name}"] = float(_mean([overlong_share(one, limits) for one in tracks]))
        found[f"diversity{name}"] = diversity(cut(tracks), space)
    return found


def _in_order(key_points: np.ndarray) -> np.ndarray:
    points = openpose_points(key_points)
    if points is None:
        known = ", ".join(map(str, OPENPOSE_COUNTS))
        raise UserError(f"the order of {key_points.shape[1]} key points is not known; write {known} points")
    return points


def _mean(values, axis: int | None = None) -> np.ndarray:
    """Return the mean of the values that are not NaN; NaN where there is none."""
    values = np.asarray(values, np.float64)
    is_there = ~np.isnan(values)
    total, number = np.where(is_there, values, 0).sum(axis), is_there.sum(axis)
    return np.divide(total, number, out=np.full(np.shape(total), np.nan), where=number > 0)


def _ratio(value: float, true: float) -> float:
    return float(value / true) if true > 0 else float("nan")
