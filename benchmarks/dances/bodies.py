"""How well are poses put on another body, and what does smoothing take away? Tables of `datasets/body/`.

    python benchmarks/dances/bodies.py [--data_dir DANCES]

Bodies. Pairs of the demo's 24 held-out dancers: the first one's dance is drawn, once more as the second one
would dance it (with a sway and reach of arms of his own, or those of the first) and compared with the first
one's poses as they are, moved sideways to where the second stands, and retargeted. Error: mean distance of
the 18 body points, in torso lengths. Overlap: intersection over union of the silhouettes of the second
dancer, drawn with these poses and with the true ones.

Trembling. Dances of --data_dir (poses/NAME.npy, metadata/NAME.json with frame_rate and beat_seconds) with
noise of 0.001 of the frame, about that of a tracker. At rest: the slowest quarter of a joint's frames by its
true motion over half a second; there, the acceleration after smoothing over that before. Beat gain: see
`evaluation/metrics/music.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import system.waiting  # noqa: E402, F401  (before torch is loaded)

import numpy as np  # noqa: E402

from datasets.body.retargeting import retarget  # noqa: E402
from datasets.body.smoothing import smooth_poses  # noqa: E402
from demo.dancer import (  # noqa: E402
    Dancer,
    Posture,
    Stage,
    choreograph,
    draw_frame,
    draw_stage,
    key_points,
    shrink,
    standing,
)
from demo.data import DemoScene, sample_scene  # noqa: E402
from evaluation.confidence import bootstrap_interval  # noqa: E402
from evaluation.metrics.music import beat_alignment_gain, motion_beats  # noqa: E402

SIZE, NUM_DANCERS, EACH = 128, 24, 4
NOISE, REST_SHARE = 0.001, 0.25
ARM, LEG = ("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle")
SIDES = {"right": ((2, 3, 4), (8, 9, 10), 21), "left": ((5, 6, 7), (11, 12, 13), 18)}


def dance(dancer: Dancer, scene: DemoScene) -> np.ndarray:
    """Return the key points of a scene's dance, danced by any dancer, [F, 134, 3]."""
    generator = np.random.default_rng(scene.seed + 2)
    postures = choreograph(dancer, scene.song, scene.frame_seconds, generator)
    return np.stack([key_points(dancer, posture) for posture in postures])


def posture(points: np.ndarray, dancer: Dancer) -> Posture:
    """Return the posture that key points [134, 3] show."""
    places = points[:, :2]
    joints = {"pelvis": places[[8, 11]].mean(0), "neck": places[1]}
    joints["head"] = places[0] - [0, 0.25 * dancer.head_radius]
    for side, (arm, leg, toe) in SIDES.items():
        numbers = dict(zip((*ARM, *LEG, "toe"), (*arm, *leg, toe), strict=True))
        joints |= {f"{side}_{name}": places[number] for name, number in numbers.items()}
    return joints


def silhouette(points: np.ndarray, dancer: Dancer) -> np.ndarray:
    drawn = draw_frame(dancer, posture(points, dancer), Stage(), SIZE)
    return (drawn != shrink(draw_stage(dancer, Stage(), SIZE), SIZE)).any(-1)


def compare(poses: np.ndarray, truth: np.ndarray, dancer: Dancer) -> tuple[float, float]:
    """Return (error in torso lengths, overlap of silhouettes) of one dance."""
    there = (poses[:, :18, 2] > 0) & (truth[:, :18, 2] > 0)
    distances = np.linalg.norm((poses - truth)[:, :18, :2], axis=-1)[there]
    overlaps = []
    for own, true in zip(poses[::EACH], truth[::EACH], strict=True):
        if own[:, 2].all() and true[:, 2].all():
            own, true = silhouette(own, dancer), silhouette(true, dancer)
            overlaps.append((own & true).sum() / (own | true).sum())
    return float(distances.mean() / (0.31 * dancer.height)), float(np.mean(overlaps)) if overlaps else np.nan


def body_table(num_pairs: int) -> None:
    scenes = [sample_scene(f"validation_{number:05d}") for number in range(NUM_DANCERS)]
    random = np.random.default_rng(0)
    found: dict[tuple[str, str], list] = {}
    for _ in range(num_pairs):
        driving, other = (scenes[number] for number in random.choice(NUM_DANCERS, 2, replace=False))
        for manner in ("the first's", "own"):
            same = {name: getattr(driving.dancer, name) for name in ("reach", "sway", "drift")}
            dancer = dataclasses.replace(other.dancer, **(same if manner != "own" else {}))
            poses, truth = dance(driving.dancer, driving), dance(dancer, driving)
            reference = key_points(dancer, standing(dancer))
            moved = poses + [dancer.centre - driving.dancer.centre, 0, 0] * (poses[..., 2:] > 0)
            on_body = retarget(poses, (SIZE, SIZE), reference, (SIZE, SIZE))
            for name, track in (("as they are", poses), ("moved", moved), ("retargeted", on_body)):
                found.setdefault((manner, name), []).append(compare(track, truth, dancer))
    print("| manner of the second dancer | poses | error, torso lengths | overlap |\n|---|---|---|---|")
    for (manner, name), values in found.items():
        cells = [
            f"{np.nanmean(column):.3f} ({low:.3f} to {high:.3f})"
            for column in np.array(values).T for low, high in [bootstrap_interval(column)]
        ]  # fmt: skip
        print(f"| {manner} | {name} | {' | '.join(cells)} |")


def acceleration_at_rest(true: np.ndarray, track: np.ndarray, frame_rate: float) -> float:
    """Return the joints' mean second difference in a track [F, K, 3] where the true one is slowest."""
    true, track = (np.where(points[:, :14, 2:] > 0, points[:, :14, :2], np.nan) for points in (true, track))
    reach = max(2, round(0.25 * frame_rate))
    speed = np.linalg.norm(true[2 * reach :] - true[: -2 * reach], axis=-1)
    is_rest = speed <= np.nanquantile(speed, REST_SHARE, axis=0)
    return float(
        np.nanmean(np.linalg.norm(np.diff(track, 2, axis=0), axis=-1)[reach - 1 : 1 - reach][is_rest])
    )


def smoothing_table(data_dir: Path) -> None:
    print("| dance | per second | acceleration at rest | beat gain before | after |\n|---|---|---|---|---|")
    gains = []
    for number, path in enumerate(sorted((data_dir / "poses").glob("*.npy"))):
        facts = json.loads((data_dir / "metadata" / f"{path.stem}.json").read_text(encoding="utf-8"))
        true, rate = np.load(path), facts["frame_rate"]
        noise = np.random.default_rng(number).normal(0, NOISE, (*true.shape[:2], 2))
        before = np.concatenate([true[..., :2] + noise, true[..., 2:]], -1) * (true[..., 2:] > 0)
        after = smooth_poses(before, rate)
        beats, seconds = np.array(facts["beat_seconds"]), len(true) / rate
        gains.append([
            beat_alignment_gain(motion_beats(track, rate), beats, seconds, num_shifts=200).gain
            for track in (before, after)
        ])  # fmt: skip
        rest = acceleration_at_rest(true, after, rate) / acceleration_at_rest(true, before, rate)
        print(f"| {path.stem} | {rate:g} | {rest:.2f} | {gains[-1][0]:.3f} | {gains[-1][1]:.3f} |")
    print("| mean | | | {:.4f} | {:.4f} |".format(*np.mean(gains, axis=0)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_pairs", type=int, default=60)
    parser.add_argument("--data_dir", type=Path, help="dances in the documented layout, for the second table")
    arguments = parser.parse_args()
    body_table(arguments.num_pairs)
    if arguments.data_dir:
        smoothing_table(arguments.data_dir)


if __name__ == "__main__":
    main()
