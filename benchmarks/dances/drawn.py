"""Dances of held-out drawn scenes, of which everything is known.

The drawn scenes are known, so nothing is read but the model: --num_clips held-out scenes
of --num_frames frames, danced to the features of their own song and, "shuffled", of three other scenes',
begun from the drawn dancer's standing pose; the noise's seed is the clip's number. All is scored against the
dancer's own true dance. One other scene for each is too few: that songs share moves by chance made .24 of
what was .16 with another order.
- move: the nearest of the six by the directions of the four arm bones, the dancer's own reach added;
  "settled" are the frames at least 0.25 s after a change of chord. Chance is a sixth, and the truth has 0.86
  of all frames, as it is between two moves for a quarter of a second.
- wrists, body: mean distance from the truth, of both wrists and of 14 joints. Sway, drift and variation are
  not in the music, so the distance cannot be 0: about 0.2 at the wrists.
- bounce: correlation of the height of mid-hip with the truth's, averaged over clips.
- jerk, speed: over the truth's. arm_spread: standard deviation of an arm bone's length over time.
- seeds_apart: mean distance of the 14 joints between two seeds.
- long: songs of --long_seconds; seams: mean speed where a window begins over that elsewhere, over the
  truth's; moves; seconds that one song second takes, and the memory that it adds to the process at its peak.
"mean pose" is the mean of the training data in the dancer's units: what a model that hears nothing would do.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import numpy as np

from benchmarks.step.clock import MemoryPeak
from demo.dancer import ARM_MOVES, key_points, standing
from demo.data import FIRST_SEEDS, FRAME_RATE, DemoScene
from demo.music import music_features
from evaluation.metrics import motion
from evaluation.metrics.motion import ARMS, Motion, motion_of, torso_length
from evaluation.metrics.pose import HIPS

from .models import Model

WRISTS = [4, 7]
SETTLED_SECONDS = 0.25


class DemoClip:
    """A held-out scene with its music; never one of the training data's, however long it is."""

    def __init__(self, number: int, num_frames: int) -> None:
        self.number = number
        self.scene = scene = DemoScene(FIRST_SEEDS["validation"] + number, num_frames)
        beats = scene.song.beat_times(num_frames / FRAME_RATE)
        self.music = music_features(scene.sound(), scene.frame_seconds, beats)
        self.truth = scene.key_points()
        self.reference = key_points(scene.dancer, standing(scene.dancer))
        self.torso = torso_length(self.truth)
        chord, since_change = scene.song.chord_position(scene.frame_seconds)
        self.moves = np.array(scene.song.chord_moves)[chord]
        self.is_settled = since_change >= SETTLED_SECONDS

    def motion(self, track: np.ndarray) -> Motion:
        return motion_of(track, FRAME_RATE, self.torso)

    def danced_moves(self, track: np.ndarray) -> np.ndarray:
        """Return the move that each frame shows, by the directions of upper arms and forearms."""
        angles = ARM_MOVES + self.scene.dancer.reach  # [6, 4]: right upper, right fore, left upper, left fore
        outwards = np.array([-1, -1, 1, 1])  # the dancer's right is on the viewer's left
        wanted = np.stack([outwards * np.sin(angles), np.cos(angles)], axis=-1)  # [6, 4, 2]
        bones = np.diff(track[:, np.array(ARMS), :2], axis=2)[:, :, 0]  # [F, 4, 2]
        bones /= np.maximum(np.linalg.norm(bones, axis=-1, keepdims=True), 1e-9)
        return np.einsum("fbx,mbx->fm", bones, wanted).argmax(axis=1)

    def figures(self, track: np.ndarray) -> dict:
        """Return what is said of one track; arrays are over its frames."""
        is_right = self.danced_moves(track) == self.moves
        own, true = self.motion(track), self.motion(self.truth)
        distances = np.linalg.norm(own.places - true.places, axis=-1)
        hips = [one[:, HIPS, 1].mean(axis=1) for one in (track, self.truth)]
        is_still = np.ptp(hips[0]) < 1e-6
        return {
            "move_settled": is_right[self.is_settled], "move": is_right,
            "wrists": np.nanmean(distances[:, WRISTS]), "body": np.nanmean(distances),
            "bounce": 0.0 if is_still else np.corrcoef(*hips)[0, 1],
            "speed": motion.speed(own), "jerk": motion.jerk(own), "arm_spread": motion.bone_spread(own, ARMS),
        }  # fmt: skip


def together(rows: list[dict], truth: list[dict]) -> dict[str, float]:
    """Return the figures of all clips together; speed and jerk over the truth's."""
    found = {name: float(np.mean(np.hstack([row[name] for row in rows]))) for name in rows[0]}
    for name in ("speed", "jerk"):
        found[name] /= float(np.mean([row[name] for row in truth]))
    return found


def measure_demo(model: Model, clips: list[DemoClip], arguments: argparse.Namespace) -> dict:
    """Return {track: figures}, and what is said of the model itself."""
    rows, seeds_apart = defaultdict(list), []
    for place, clip in enumerate(clips):
        first, second = model.dance(clip.music, clip.reference, clip.number, num_tracks=2)
        mean_pose = model.mean_pose(clip.reference, len(clip.truth))
        for name, track in (("truth", clip.truth), ("generated", first), ("mean pose", mean_pose)):
            rows[name].append(clip.figures(track))
        for step in sorted({1, len(clips) // 3, 2 * len(clips) // 3} - {0}):
            song = clips[(place + step) % len(clips)].music
            rows["shuffled"].append(clip.figures(model.dance(song, clip.reference, clip.number)[0]))
        seeds_apart.append(motion.apart([clip.motion(first), clip.motion(second)]))
    found = {name: together(of_clips, rows["truth"]) for name, of_clips in rows.items()}
    found["generated"] |= {
        "wrists_of_shuffled": found["generated"]["wrists"] / found["shuffled"]["wrists"],
        "seeds_apart": float(np.mean(seeds_apart)),
    }
    songs = {f"{seconds:g} s": measure_long(model, seconds, arguments) for seconds in arguments.long_seconds}
    return {**found, "long": songs}


def measure_long(model: Model, seconds: float, arguments: argparse.Namespace) -> dict[str, float]:
    """Return seams, moves and cost of held-out songs of so many seconds."""
    ratios, is_right, taken, memory = defaultdict(list), [], 0.0, []
    for number in range(arguments.num_long):
        clip = DemoClip(number, round(seconds * FRAME_RATE))
        peak = MemoryPeak(model.model.device)
        peak.restart()
        start = time.monotonic()
        track = model.dance(clip.music, clip.reference, number)[0]
        taken += time.monotonic() - start
        found = peak.summary()
        memory.append((found["peak_memory_gb"] or 0) - (found.get("packages_gb") or 0))
        for name, one in (("own", track), ("true", clip.truth)):
            ratios[name].append(motion.seam_ratio(clip.motion(one), model.borders(len(track))))
        is_right.append((clip.danced_moves(track) == clip.moves)[clip.is_settled])
    return {
        "seams": float(np.mean(ratios["own"]) / np.mean(ratios["true"])),
        "move_settled": float(np.concatenate(is_right).mean()),
        "taken_per_second": taken / seconds / arguments.num_long,
        "memory_mib": 2**10 * max(memory),
    }
