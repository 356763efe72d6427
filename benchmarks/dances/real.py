"""Dances to held-out music of real dancers, beside theirs, with floors.

Whole held-out takes, danced to their own music from their own reference pose (the first
frame that shows a body). Beside the truth's: speed, jerk and bone spread over it, feet, over-long bones,
seams, diversity, windows' distance to the nearest of training, and the gain on the beat per take. Floors of
fid_k: the truth's halves (first and second of each take), each other dance of the training data (--kind: a
regular expression whose first group names it), noise (the mean pose, each joint with white noise of its own
deviation) and the mean pose itself. Gap: position loss at fixed noise and timesteps, over --num_windows
windows twice, with another window's music, the own music .2 to .8 s off, without each group and without any,
each over that with its own, less 1; with a 95 % interval over windows. --num_training_takes: the same, for
takes of training.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict

import numpy as np

from evaluation.metrics import motion
from evaluation.metrics.motion import KineticSpace, Motion

from .gaps import GapWindows
from .models import Model
from .takes import Take, read_takes

EVERY_WINDOW = 4  # of those whose nearest training window is looked for


def windows_of(motions: list[Motion]) -> list[Motion]:
    return [window for one in motions for window in one.windows()]


def fid_floors(held: list[Take], training: list[Take], space: KineticSpace, kind: str) -> dict[str, float]:
    """Return {what is known: its fid_k to the held-out truth}."""
    own = [take.motion().windows() for take in held]
    windows = [window for some in own for window in some]
    halves = [
        [window for some in own for window in some[: len(some) // 2]],
        [window for some in own for window in some[len(some) // 2 :]],
    ]
    sets = defaultdict(list)
    for take in training:
        if found := re.match(kind, take.name):
            sets[f"training: {found[1]}"] += take.motion().windows()
    places = np.concatenate([take.motion().places for take in training])
    mean, deviation = np.nanmean(places, axis=0), np.nanstd(places, axis=0)
    random = np.random.default_rng(0)
    for window in windows:
        noise = random.standard_normal(window.places.shape)
        sets["noise"].append(window._replace(places=mean + deviation * noise))
        sets["mean pose"].append(window._replace(places=mean + 0 * noise))
    floors = {"truth's halves": motion.fid_k(*halves, space)}
    return floors | {name: motion.fid_k(some, windows, space) for name, some in sets.items()}


def measure_takes(model: Model, takes: list[Take], training: list[Motion]) -> dict:
    """Return figures of the dances to these takes' music, and the takes' own beside them."""
    tracks = [model.dance(take.rows, take.reference, seed)[0] for seed, take in enumerate(takes)]
    pairs = list(zip(takes, tracks, strict=True))
    sides = {"": [take.motion(track) for take, track in pairs], "_truth": [take.motion() for take in takes]}
    found, known = motion.beside_truth(*sides.values(), training), windows_of(training)
    for name, motions in sides.items():
        ratios = [motion.seam_ratio(one, model.borders(len(one.places))) for one in motions]
        found[f"seams{name}"] = mean(ratios)
        some = windows_of(motions)[::EVERY_WINDOW]
        found[f"nearest{name}"] = mean([motion.nearest_window(window, known) for window in some])
    beats = {
        take.name: {"generated": take.gain(track), "truth": take.gain()}
        for take, track in pairs if take.beats is not None
    }  # fmt: skip
    for side, name in (("generated", ""), ("truth", "_truth")):
        found[f"beat_gain{name}"] = mean([row[side].gain for row in beats.values()])
        found[f"beat_shifts_beaten{name}"] = mean([row[side].share_beaten for row in beats.values()])
    by_take = {name: {side: gain._asdict() for side, gain in row.items()} for name, row in beats.items()}
    return {"figures": found, "beats": by_take}


def measure_real(model: Model, arguments: argparse.Namespace) -> dict:
    """Return figures, gaps and floors of held-out takes, and the same of some of training."""
    folders = (arguments.validation_data_dir, arguments.train_data_dir)
    held, training = (read_takes(data_dir, model) for data_dir in folders)
    motions = [take.motion() for take in training]
    last, count = len(training) - 1, min(arguments.num_training_takes, len(training))
    chosen = [training[index] for index in np.linspace(0, last, count).round().astype(int)]
    found = {}
    for name, takes in (("held out", held), ("training", chosen)):
        if takes:
            gaps = GapWindows(model, takes, arguments.num_windows).gaps()
            found[name] = {**measure_takes(model, takes, motions), "music": gaps}
    space = KineticSpace.of(windows_of(motions))
    return found | {"floors of fid_k": fid_floors(held, training, space, arguments.kind)}


def mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
