"""Pose estimators by name, and what one has to be able to do; users' own ones are wrapped here.

An estimator first finds the people of every frame; once the dancer is chosen among them, it is asked for this
one person's key points, frame after frame. Key points are float [134, 3]: x and y as fractions of the frame,
confidence (0: absent, then x and y are 0 too), in OpenPose's order: 18 body, 6 feet, 68 face, 21 left hand,
21 right hand; left and right are the person's own.
"""

import importlib.util
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

from datasets.guidance.people import Detection, box_around, largest_person
from preparation.settings import Settings
from system.errors import ConfigError
from system.user_code import load_user_object

NUM_POINTS = 134
INSTALL = "install it with: pip install -r requirements-prepare.txt"


class PoseEstimator(Protocol):
    """What the registered classes offer. They are made once in each worker process."""

    description: str  # for the metadata: which models, which version

    def find_people(self, frame: np.ndarray) -> list[Detection]:
        """Return everybody in a frame, uint8 [H, W, 3] RGB."""

    def key_points(self, frame: np.ndarray, person: Detection | None) -> np.ndarray:
        """Return the person's points [134, 3]. person: None where nobody was found; an estimator that can
        follow a person by the frame before may do so, others return absent points."""

    def start_piece(self) -> None:
        """Forget the frame before: a piece begins. An estimator that keeps nothing has nothing to do."""


_REGISTRY: dict[str, Callable[[Settings], PoseEstimator]] = {}
_REQUIRED_MODULES: dict[str, tuple[str, ...]] = {}


def register_pose_estimator(name: str, *, needs: tuple[str, ...] = ()):
    """Return a class decorator: `--pose_estimator name` makes the class, with the settings alone.

    needs: modules that must be importable, checked before any work is begun.
    """

    def register(factory: Callable[[Settings], PoseEstimator]):
        _REGISTRY[name], _REQUIRED_MODULES[name] = factory, needs
        return factory

    return register


def pose_estimator_names() -> list[str]:
    return sorted(_REGISTRY)


def check_pose_estimator(settings: Settings) -> None:
    """Raise ConfigError when the estimator is unknown, or what it needs is not there."""
    name = settings.pose_estimator
    if ":" in name:
        load_user_object(name, "--pose_estimator")
        return
    if name not in _REGISTRY:
        known = ", ".join(pose_estimator_names())
        raise ConfigError(f"--pose_estimator {name}: expected {known} or your own MODULE:NAME")
    factory = _REGISTRY[name]
    missing = [module for module in _REQUIRED_MODULES[name] if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(f"--pose_estimator {name} needs {', '.join(missing)}; {factory.install}")
    if hasattr(factory, "check"):
        factory.check(settings)


def make_pose_estimator(settings: Settings) -> PoseEstimator:
    """Return the estimator that --pose_estimator names. Raises ConfigError."""
    name = settings.pose_estimator
    if name in _REGISTRY:
        return _REGISTRY[name](settings)
    found = load_user_object(name, "--pose_estimator")
    return UserPoseEstimator(name, found() if isinstance(found, type) else found)


def gpu_share(settings: Settings) -> float:
    """Return which share of a GPU an estimator asks for where there is one; 0: it uses none.

    A registered class, or a user's class or function, says so by its attribute gpu_share.
    """
    name = settings.pose_estimator
    factory = _REGISTRY[name] if name in _REGISTRY else load_user_object(name, "--pose_estimator")
    return float(getattr(factory, "gpu_share", 0))


def absent_points() -> np.ndarray:
    return np.zeros((NUM_POINTS, 3), np.float32)


def keep_inside(points: np.ndarray) -> np.ndarray:
    """Return points [134, 3], those absent that lie outside the frame or have no confidence."""
    points = np.asarray(points, np.float32)
    inside = ((points[:, :2] >= 0) & (points[:, :2] <= 1)).all(axis=1)
    return np.where((inside & (points[:, 2] > 0))[:, None], points, 0)


def follow_dancer(
    estimator: PoseEstimator, frames: Callable[[], Iterable[np.ndarray]], frame_rate: float
) -> np.ndarray:
    """Return the largest person's key points in a video, float32 [F, 134, 3]; absent where not seen.

    frames: gives the video's frames, uint8 [H, W, 3], twice: all of it is looked at before the choice. A
    frame that is the very array before it has the same result.
    """
    people, last = [], None
    for frame in frames():
        people.append(people[-1] if frame is last else estimator.find_people(frame))
        last = frame
    estimator.start_piece()
    points, last = [], None
    for frame, person in zip(frames(), largest_person(people, frame_rate), strict=True):
        is_same = frame is last
        points.append(points[-1] if is_same else np.asarray(estimator.key_points(frame, person), np.float32))
        last = frame
    return np.stack(points)


class UserPoseEstimator(PoseEstimator):
    """A user's function, or an object of a user's class: frame -> points of everybody in it.

    The function is given uint8 [H, W, 3] RGB and returns [134, 3] of the one person, [P, 134, 3] of P
    people, or None of nobody.
    """

    def __init__(self, name: str, function: Callable) -> None:
        self.description, self._name, self._function = name, name, function

    def find_people(self, frame: np.ndarray) -> list[Detection]:
        found = self._function(frame)
        people = np.zeros((0, NUM_POINTS, 3)) if found is None else np.asarray(found, np.float32)
        people = people[None] if people.ndim == 2 else people
        if people.ndim != 3 or people.shape[1:] != (NUM_POINTS, 3) or not np.isfinite(people).all():
            raise ConfigError(
                f"--pose_estimator {self._name} returned an array of shape {list(np.shape(found))}; expected "
                f"finite numbers [{NUM_POINTS}, 3] (x and y as fractions of the frame, confidence), "
                f"[people, {NUM_POINTS}, 3], or None"
            )
        people = [keep_inside(points) for points in people]
        return [box_around(points) for points in people if points[:, 2].any()]

    def key_points(self, frame: np.ndarray, person: Detection | None) -> np.ndarray:
        return absent_points() if person is None else person.details
