"""Make the demo's data folders: drawn dancers who dance to synthesised music, in the documented layout.

    python -m datasets.demo_data --output_dir demo_data

writes `demo_data/train` and `demo_data/validation`, each with videos/ (mp4 with sound), poses/ (134 key
points per frame), music_features/ (35 features per frame), reference_images/ and metadata/. No dancer, song
or dance is in both.
"""

import system.waiting  # before torch is loaded

import argparse
import functools
import json
import os
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from datasets.media.video_writing import write_video
from system.command_line import Parser, number, run_main
from system.errors import DataError

from .dancer import (
    Stage,
    choreograph,
    draw_frame,
    draw_lots,
    draw_stage,
    key_points,
    shrink,
    stage_light,
    standing,
)
from .music import compose_song, music_features, synthesise, write_wave

FRAME_RATE = 12
NUM_FRAMES = 40
RESOLUTION = 128
RECIPE = "demo35"  # of the music features: beats are the synthesiser's own, no sound file gives them
POSE_RECIPE = "demo134"  # the key points are the drawn dancer's own, no estimator finds them
FIRST_SEEDS = {"train": 0, "validation": 500_000}  # one seed per sample; the two ranges never meet


class DemoScene:
    """Everything about one demo sample, from its seed, so that a test or a metric can look behind it."""

    def __init__(self, seed: int, num_frames: int = NUM_FRAMES) -> None:
        generator = np.random.default_rng(seed)
        self.seed, self.num_frames = seed, num_frames
        self.frame_seconds = np.arange(num_frames) / FRAME_RATE  # presentation times [F]
        self.dancer = draw_lots(generator)
        self.song = compose_song(generator, num_frames / FRAME_RATE)
        self.postures = choreograph(self.dancer, self.song, self.frame_seconds, generator)
        self.light = stage_light(self.song, self.frame_seconds)

    def frames(self) -> np.ndarray:
        """Return the dance: uint8 [F, H, W, 3]."""
        scenes = zip(self.postures, self.light, strict=True)
        return np.stack([draw_frame(self.dancer, posture, stage, RESOLUTION) for posture, stage in scenes])

    def empty_stage(self, frame: int) -> np.ndarray:
        """Return the same frame without the dancer: uint8 [H, W, 3]."""
        return shrink(draw_stage(self.dancer, self.light[frame], RESOLUTION), RESOLUTION)

    def reference_image(self) -> np.ndarray:
        """Return the dancer standing, in plain light: uint8 [H, W, 3]."""
        return draw_frame(self.dancer, standing(self.dancer), Stage(), RESOLUTION)

    def key_points(self) -> np.ndarray:
        """Return float [F, 134, 3]: x, y as fractions of the frame, confidence."""
        return np.stack([key_points(self.dancer, posture) for posture in self.postures])

    def sound(self) -> np.ndarray:
        """Return the song, float32 [N] at demo.music.SAMPLE_RATE."""
        duration = self.num_frames / FRAME_RATE
        return synthesise(self.song, duration, np.random.default_rng(self.seed + 1))


def write_sample(data_dir: Path, sample_id: str, num_frames: int = NUM_FRAMES) -> None:
    """Write one sample into the folders of `data_dir`."""
    scene = sample_scene(sample_id, num_frames)
    sound = scene.sound()
    beat_times = scene.song.beat_times(scene.num_frames / FRAME_RATE)
    features = music_features(sound, scene.frame_seconds, beat_times)
    wave_path = data_dir / "videos" / f"{sample_id}.wav"
    write_wave(wave_path, sound)
    write_video(data_dir / "videos" / f"{sample_id}.mp4", scene.frames(), FRAME_RATE, audio_path=wave_path)
    wave_path.unlink()
    np.save(data_dir / "music_features" / f"{sample_id}.npy", features)
    pose_dir = data_dir / "poses" / sample_id
    pose_dir.mkdir()
    key_points = scene.key_points()
    for index, points in enumerate(key_points):
        pose = {"keypoints": points.round(4).tolist(), "pose_type": "dance", "frame_id": index,
                "coordinates": "normalized"}  # fmt: skip
        (pose_dir / f"frame_{index:03d}.json").write_text(json.dumps(pose), encoding="utf-8")
    facts = {
        "frame_rate": FRAME_RATE, "size": [RESOLUTION, RESOLUTION],
        "beat_seconds": beat_times.round(4).tolist(),
        "music_features": {"name": RECIPE, "channels": features.shape[1]},
        "poses": {"name": POSE_RECIPE, "key_points": key_points.shape[1]},
    }  # fmt: skip
    (data_dir / "metadata" / f"{sample_id}.json").write_text(json.dumps(facts), encoding="utf-8")
    reference_path = data_dir / "reference_images" / f"{sample_id}.png"
    if not cv2.imwrite(str(reference_path), scene.reference_image()[..., ::-1]):
        raise DataError(f"{reference_path}: could not be written; is the disk full?")


def sample_scene(sample_id: str, num_frames: int = NUM_FRAMES) -> DemoScene:
    """Return the scene behind a demo sample, from its name, for example `validation_00007`."""
    split, number = sample_id.rsplit("_", 1)
    return DemoScene(FIRST_SEEDS[split] + int(number), num_frames)


def make_demo_data(
    output_dir: Path, num_train: int, num_validation: int, num_workers: int, num_frames: int = NUM_FRAMES
) -> None:
    """Write `train` and `validation` below `output_dir`; a split that is there is left as it is.

    Each split is written beside its place and moved there when it is whole, so that a stopped run leaves no
    half-written one. Raises DataError when a split is there with other samples.
    """
    for split, num_samples in (("train", num_train), ("validation", num_validation)):
        split_dir = output_dir / split
        if split_dir.exists():
            found = len(list((split_dir / "videos").glob("*.mp4")))
            if found != num_samples:
                raise DataError(f"{split_dir}: holds {found} videos where {num_samples} were asked for; "
                                f"remove the folder, or choose another --output_dir")  # fmt: skip
            found = len(list((split_dir / "poses" / f"{split}_00000").glob("*.json")))
            if found != num_frames:
                raise DataError(f"{split_dir}: holds samples of {found} frames where {num_frames} were asked "
                                f"for; remove the folder, or choose another --output_dir")  # fmt: skip
            print(f"{split_dir}: there already, {num_samples} samples")
            continue
        partial_dir = output_dir / f".{split}.partial"
        shutil.rmtree(partial_dir, ignore_errors=True)
        for folder in ("videos", "poses", "music_features", "reference_images", "metadata"):
            (partial_dir / folder).mkdir(parents=True)
        names = [f"{split}_{index:05d}" for index in range(num_samples)]
        with ProcessPoolExecutor(num_workers) as pool:
            write = functools.partial(write_sample, partial_dir, num_frames=num_frames)
            written = pool.map(write, names, chunksize=4)
            list(tqdm(written, total=num_samples, desc=f"demo {split}"))
        partial_dir.rename(split_dir)


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong flags, or a split that is there in another size."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add, count = parser.add_argument, number(int, 1)
    add("--output_dir", type=Path, default=Path("demo_data"))
    add("--num_train", type=count, default=320, help="training samples (default: 320)")
    add("--num_validation", type=count, default=24, help="held-out samples")
    add("--num_frames", type=number(int, 2), default=NUM_FRAMES, help="of a sample (default: 40)")
    add("--num_workers", type=count, default=os.cpu_count(), help="drawing processes")
    return run_main(parser.prog, lambda: make_demo_data(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    sys.exit(main())
