"""Drawn dancers for the demo set: a body, clothes and a stage from a seed, and choreography from a song.

The move follows the chord, the bounce and the light follow the beat, the floor's colour follows the chord.
Where the dancer stands, which way the hips sway and how far the arms go is the dancer's own, so that music
tells much about the dance but only the pose track tells all.
"""

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

from .music import BEATS_PER_CHORD, CHORD_ROOTS, Song

SUPERSAMPLING = 3  # drawn larger and averaged down: clean edges
LIGHT_DECAY_SECONDS = 0.2
TRANSITION_SECONDS = 0.25

# {joint: [x, y] as fractions of the frame} of one frame; right and left are the dancer's own.
Posture = dict[str, np.ndarray]

# Upper arm and forearm of the dancer's right, then left: degrees from straight down, outwards positive.
ARM_MOVES = np.radians([
    (40, -50, 40, -50),  # hands on the hips
    (150, 165, 150, 165),  # both up in a V
    (88, 92, 88, 92),  # both out
    (155, 170, 35, -45),  # right up, left on the hip
    (70, 20, 150, 165),  # left up, right low and out
    (85, 175, 85, 175),  # goal posts
])  # fmt: skip
LEG_SPREADS = np.array([0.10, 0.32, 0.10, 0.38, 0.38, 0.22])  # radians of each leg from straight down


@dataclass(frozen=True)
class Dancer:
    """What stays the same through a video: lengths are fractions of the frame, colours 0..255 RGB."""

    height: float
    arm_length: float
    shoulder_width: float
    hip_width: float
    limb_width: float
    head_radius: float
    centre: float
    drift: float
    sway: float
    reach: np.ndarray  # radians added to the four arm angles
    hair_style: int
    sleeves: bool
    skirt: bool
    skin: tuple
    hair: tuple
    shirt: tuple
    legs: tuple
    shoes: tuple
    wall: tuple
    poster: tuple  # x, y, width, height as fractions
    poster_colour: tuple


@dataclass(frozen=True)
class Stage:
    """The light of one frame: brightness 0..1 of the backdrop, hue 0..1 of the floor (None: grey)."""

    brightness: float = 0.85
    floor_hue: float | None = None


def draw_lots(generator: np.random.Generator) -> Dancer:
    """Return a dancer with a random body, clothes and backdrop."""
    height = generator.uniform(0.70, 0.80)

    def colour(saturation, value):
        hue, saturation, value = (generator.uniform(*bounds) for bounds in ((0, 1), saturation, value))
        rgb = colorsys.hsv_to_rgb(hue, saturation, value)
        return tuple(round(255 * c) for c in rgb)

    skin_tone = generator.uniform()
    skin = tuple(round(a + skin_tone * (b - a)) for a, b in ((245, 110), (210, 70), (185, 45)))
    hair = ((30, 24, 22), (90, 56, 30), (214, 176, 98), (150, 50, 30), (190, 190, 195))[generator.integers(5)]
    return Dancer(
        height=height, arm_length=height * generator.uniform(0.36, 0.42),
        shoulder_width=height * generator.uniform(0.20, 0.27),
        hip_width=height * generator.uniform(0.13, 0.18),
        limb_width=height * generator.uniform(0.065, 0.090),
        head_radius=height * generator.uniform(0.085, 0.100),
        centre=generator.uniform(0.38, 0.62), drift=generator.uniform(-0.05, 0.05),
        sway=generator.uniform(0.012, 0.035) * generator.choice([-1, 1]),
        reach=np.radians(generator.uniform(-14, 14, 4)), hair_style=int(generator.integers(4)),
        sleeves=bool(generator.integers(2)), skirt=bool(generator.uniform() < 0.3), skin=skin, hair=hair,
        shirt=colour((0.55, 1.0), (0.55, 1.0)), legs=colour((0.2, 0.9), (0.15, 0.7)),
        shoes=colour((0.0, 0.9), (0.1, 0.95)), wall=colour((0.05, 0.45), (0.55, 0.95)),
        poster=(generator.uniform(0.04, 0.66), generator.uniform(0.05, 0.2), generator.uniform(0.15, 0.3),
                generator.uniform(0.15, 0.35)),
        poster_colour=colour((0.1, 0.6), (0.3, 0.9)),
    )  # fmt: skip


def stage_light(song: Song, seconds: np.ndarray) -> list[Stage]:
    """Return the light at each time: bright on the beat, fading after it, the floor in the chord's colour."""
    brightness = 0.45 + 0.55 * np.exp(-song.seconds_since_beat(seconds) / LIGHT_DECAY_SECONDS)
    chord, _ = song.chord_position(seconds)
    hues = [song.chord_moves[index] / len(CHORD_ROOTS) for index in chord]
    return [Stage(float(level), hue) for level, hue in zip(brightness, hues, strict=True)]


def choreograph(
    dancer: Dancer, song: Song, seconds: np.ndarray, generator: np.random.Generator
) -> list[Posture]:
    """Return the posture at each time. Each chord's move is danced a little differently each time."""
    variation = np.radians(generator.normal(0, 7, (len(song.chord_moves), 4)))
    targets = ARM_MOVES[list(song.chord_moves)] + dancer.reach + variation
    spreads = LEG_SPREADS[list(song.chord_moves)]
    chord, since_chord = song.chord_position(seconds)
    before = np.maximum(chord - 1, 0)
    blend = np.clip(since_chord / TRANSITION_SECONDS, 0, 1)
    blend = (blend * blend * (3 - 2 * blend))[:, None]
    arms = (1 - blend) * targets[before] + blend * targets[chord]
    spread = (1 - blend[:, 0]) * spreads[before] + blend[:, 0] * spreads[chord]
    bounce = np.exp(-song.seconds_since_beat(seconds) / 0.18)
    swing = np.sin(2 * np.pi * since_chord / (BEATS_PER_CHORD * song.beat_seconds))
    hips = dancer.centre + dancer.sway * swing + dancer.drift * np.sin(0.9 * np.asarray(seconds))
    return [_posture(dancer, *frame) for frame in zip(hips, arms, spread, bounce, strict=True)]


def standing(dancer: Dancer) -> Posture:
    """Return the posture of the reference image: arms a little out, feet apart."""
    return _posture(dancer, dancer.centre, np.radians([22, 16, 22, 16]), 0.14, 0.0)


def _posture(dancer: Dancer, hips: float, arms: np.ndarray, spread: float, bounce: float) -> Posture:
    """Return joint positions from angles; the feet stay on the floor, so a bounce bends the knees."""
    floor, leg = 0.94, 0.48 * dancer.height
    crouch = 0.11 * leg * bounce
    pelvis = np.array([hips, floor - leg * np.cos(spread) + crouch])
    neck = pelvis + [0.25 * (hips - dancer.centre), -0.31 * dancer.height]
    joints = {"pelvis": pelvis, "neck": neck, "head": neck - [0, 0.045 * dancer.height + dancer.head_radius]}
    for side, sign, upper, lower in (("right", -1, arms[0], arms[1]), ("left", 1, arms[2], arms[3])):
        shoulder = neck + [sign * dancer.shoulder_width / 2, 0.02 * dancer.height]
        elbow = shoulder + dancer.arm_length / 2 * np.array([sign * np.sin(upper), np.cos(upper)])
        wrist = elbow + dancer.arm_length / 2 * np.array([sign * np.sin(lower), np.cos(lower)])
        hip = pelvis + [sign * dancer.hip_width / 2, 0]
        ankle = np.array([hip[0] + sign * leg * np.sin(spread), floor])
        knee = (hip + ankle) / 2 + [sign * (0.02 * dancer.height + 0.9 * crouch), 0]
        toe = ankle + [sign * 0.045 * dancer.height, 0.012 * dancer.height]
        joints |= {f"{side}_{name}": point for name, point in (
            ("shoulder", shoulder), ("elbow", elbow), ("wrist", wrist), ("hip", hip), ("knee", knee),
            ("ankle", ankle), ("toe", toe))}  # fmt: skip
    return joints


def draw_stage(dancer: Dancer, stage: Stage, size: int) -> np.ndarray:
    """Return the empty stage, uint8 [size * SUPERSAMPLING, ..., 3] RGB: backdrop, poster, floor."""
    large = size * SUPERSAMPLING
    image = np.empty((large, large, 3), np.uint8)
    _fill(image, np.multiply(dancer.wall, stage.brightness))
    x, y, width, height = (round(large * v) for v in dancer.poster)
    _fill(image[y : y + height, x : x + width], np.multiply(dancer.poster_colour, stage.brightness))
    floor = (110, 110, 110) if stage.floor_hue is None else colorsys.hsv_to_rgb(stage.floor_hue, 0.85, 255)
    _fill(image[round(large * 0.84) :], np.multiply(floor, 0.25 + 0.75 * stage.brightness))
    return image


def _fill(area: np.ndarray, colour: np.ndarray) -> None:
    """Paint uint8 [H, W, 3] with a colour [3], row by row: NumPy spreads three bytes at a time slowly."""
    area[:] = np.tile(colour.astype(np.uint8), (area.shape[1], 1))


def draw_frame(dancer: Dancer, posture: Posture, stage: Stage, size: int) -> np.ndarray:
    """Return one frame, uint8 [size, size, 3] RGB."""
    image = draw_stage(dancer, stage, size)
    _draw_body(image, dancer, posture)
    return shrink(image, size)


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Return the drawing at its final size, each pixel the mean of those under it."""
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)


def _draw_body(image: np.ndarray, dancer: Dancer, posture: Posture) -> None:
    scale = image.shape[0]
    joints = {name: np.round(scale * point).astype(int).tolist() for name, point in posture.items()}
    width = dancer.limb_width * scale

    def limb(start, end, colour, factor=1.0):
        cv2.line(image, joints[start], joints[end], colour, max(1, round(width * factor)), cv2.LINE_AA)

    if dancer.hair_style == 1:  # long hair hangs behind the shoulders
        head = posture["head"]
        tips = [head + [s * dancer.head_radius * 1.15, d * dancer.head_radius] for s, d in
                ((-1, -0.2), (1, -0.2), (1, 2.1), (-1, 2.1))]  # fmt: skip
        cv2.fillPoly(image, [np.round(scale * np.array(tips)).astype(np.int32)], dancer.hair, cv2.LINE_AA)
    for side in ("right", "left"):
        skin_legs = dancer.skirt
        limb(f"{side}_hip", f"{side}_knee", dancer.skin if skin_legs else dancer.legs, 1.35)
        limb(f"{side}_knee", f"{side}_ankle", dancer.skin if skin_legs else dancer.legs, 1.1)
        limb(f"{side}_ankle", f"{side}_toe", dancer.shoes, 1.1)
    torso = [posture[n] for n in ("right_shoulder", "left_shoulder", "left_hip", "right_hip")]
    torso_outline = np.round(scale * np.array(torso)).astype(np.int32)
    limb("neck", "head", dancer.skin, 0.9)
    cv2.fillPoly(image, [torso_outline], dancer.shirt, cv2.LINE_AA)
    cv2.polylines(image, [torso_outline], True, dancer.shirt, round(width), cv2.LINE_AA)
    if dancer.skirt:
        hem = [posture["right_hip"] + [-0.03, -0.01], posture["left_hip"] + [0.03, -0.01],
               (posture["left_knee"] + posture["left_hip"]) / 2 + [0.055, 0.01],
               (posture["right_knee"] + posture["right_hip"]) / 2 + [-0.055, 0.01]]  # fmt: skip
        cv2.fillPoly(image, [np.round(scale * np.array(hem)).astype(np.int32)], dancer.legs, cv2.LINE_AA)
    for side in ("right", "left"):
        limb(f"{side}_elbow", f"{side}_wrist", dancer.skin, 0.85)
        limb(f"{side}_shoulder", f"{side}_elbow", dancer.shirt if dancer.sleeves else dancer.skin, 0.95)
        cv2.circle(image, joints[f"{side}_wrist"], round(width * 0.55), dancer.skin, -1, cv2.LINE_AA)
    _draw_head(image, dancer, posture["head"])


def _draw_head(image: np.ndarray, dancer: Dancer, head: np.ndarray) -> None:
    scale, radius = image.shape[0], dancer.head_radius

    def spot(dx, dy, size, colour):
        centre = np.round(scale * (head + np.array([dx, dy]) * radius)).astype(int).tolist()
        cv2.circle(image, centre, max(1, round(scale * radius * size)), colour, -1, cv2.LINE_AA)

    if dancer.hair_style == 2:
        spot(0, -0.35, 1.35, dancer.hair)  # afro
    if dancer.hair_style == 3:
        spot(0, -1.15, 0.5, dancer.hair)  # bun
    spot(0, -0.12, 1.05, dancer.hair)
    spot(0, 0.12, 0.92, dancer.skin)
    for dx in (-0.36, 0.36):
        spot(dx, 0.02, 0.14, (25, 20, 25))
    lips = head + np.array([[-0.28, 0.5], [0, 0.6], [0.28, 0.5]]) * radius
    mouth = np.round(scale * lips).astype(np.int32)
    cv2.polylines(image, [mouth], False, (160, 50, 60), max(1, round(scale * radius * 0.13)), cv2.LINE_AA)


def key_points(dancer: Dancer, posture: Posture) -> np.ndarray:
    """Return float [134, 3] x, y, confidence in OpenPose order: 18 body, 6 feet, 68 face, 2 x 21 hands."""
    head, radius = posture["head"], dancer.head_radius
    face_point = lambda x, y: head + np.array([x, y]) * radius  # noqa: E731
    arm = ("shoulder", "elbow", "wrist")
    leg = ("hip", "knee", "ankle")
    body = [face_point(0, 0.25), posture["neck"]]
    body += [posture[f"{side}_{name}"] for side in ("right", "left") for name in arm]
    body += [posture[f"{side}_{name}"] for side in ("right", "left") for name in leg]
    body += [face_point(x, y) for x, y in ((-0.36, 0.02), (0.36, 0.02), (-0.95, 0.1), (0.95, 0.1))]
    feet = []
    for side in ("left", "right"):
        toe, ankle = posture[f"{side}_toe"], posture[f"{side}_ankle"]
        feet += [toe, ankle + 0.7 * (toe - ankle) + [0, 0.01], ankle + [0, 0.015]]
    face = [face_point(x, y) for x, y in _FACE_OUTLINE]
    forearms = [(posture[f"{side}_elbow"], posture[f"{side}_wrist"]) for side in ("left", "right")]
    hands = [point for elbow, wrist in forearms for point in _hand(elbow, wrist)]
    points = np.array(body + feet + face + hands)
    inside = ((points >= 0) & (points <= 1)).all(axis=1)
    return np.column_stack([points, np.ones(len(points))]) * inside[:, None]


def _hand(elbow: np.ndarray, wrist: np.ndarray) -> list[np.ndarray]:
    """Return 21 points: the wrist and four on each of five fingers that fan out along the forearm."""
    forward = (wrist - elbow) / max(np.linalg.norm(wrist - elbow), 1e-6)
    sideways = np.array([-forward[1], forward[0]])
    fingers = [forward * np.cos(a) + sideways * np.sin(a) for a in np.radians([-50, -22, 0, 22, 44])]
    return [wrist] + [wrist + finger * 0.009 * step for finger in fingers for step in (1, 2, 3, 4)]


def _face_outline() -> list[tuple[float, float]]:
    """Return 68 face points in iBUG order around the drawn face, in head radii."""
    angles = np.radians(np.linspace(170, 10, 17))
    jaw = [(0.9 * np.cos(a), 0.1 + 0.85 * np.sin(a)) for a in angles]
    brows = [(x, -0.22) for x in (*np.linspace(-0.55, -0.18, 5), *np.linspace(0.18, 0.55, 5))]
    nose = [(0, y) for y in (0.0, 0.1, 0.18, 0.25)] + [(x, 0.3) for x in np.linspace(-0.12, 0.12, 5)]
    around = np.radians(np.arange(180, 540, 60))
    eyes = [(cx + 0.12 * np.cos(a), 0.02 + 0.07 * np.sin(a)) for cx in (-0.36, 0.36) for a in around]
    outer = [(0.28 * np.cos(a), 0.54 + 0.1 * np.sin(a)) for a in np.radians(np.arange(180, 540, 30))]
    inner = [(0.18 * np.cos(a), 0.54 + 0.05 * np.sin(a)) for a in np.radians(np.arange(180, 540, 45))]
    return jaw + brows + nose + eyes + outer + inner


_FACE_OUTLINE = _face_outline()
