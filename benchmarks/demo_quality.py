"""Does the demo's model do what it is told? Numbers and a sheet of images, on held-out dancers.

    python benchmarks/demo_quality.py --model_path demo_output/final [more final/ folders] \\
        --data_dir demo_data/validation --json quality.json --sheet quality.png [--music_to_pose_path FINAL]

Clips, sampling, PSNR and gaps are those of `evaluate_guidance.py` (see `evaluation/`); here stands what only
drawn scenes can tell.

Protocol. Every held-out clip once, frames 8 to 8 + F - 1 of its video, sampled with DDIM and the seed that is
its number, `--num_inference_steps` steps, `--guidance_scale`. "Shuffled" takes that one condition from the
next clip, all else the same. `psnr` and its kin are of a clip's mean error, averaged over clips. The PSNR of
`evaluate_guidance.py --start_frame 8 --num_frames F --seed 0`, a mean over frames, is `psnr_of_frames` here:
higher, by up to 2 dB where a clip's frames differ much. The drawn scenes are known, so
- silhouette: pixels that differ from the same empty stage by more than 40 of 255 in some channel; the overlap
  of two silhouettes is intersection over union, averaged over frames;
- light: the mean brightness of the backdrop's two edges (a tenth of the width each, upper 80 %), correlated
  over all frames after subtracting each clip's mean;
- floor: right when the sampled floor's hue is within 30 degrees of the true one;
- image and song: with --music_to_pose_path, `overlap_image_and_song` is of videos danced to poses that the
  music-to-pose model makes of the clip's whole song, begun from the drawn dancer's standing pose, and to that
  music; "shuffled" has pose and music of the next clip's song.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import system.waiting  # noqa: E402  (before torch is loaded)

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from datasets.guidance.drawing import draw_pose  # noqa: E402
from datasets.transforms import reference_transform  # noqa: E402
from demo.dancer import key_points, standing  # noqa: E402
from demo.data import DemoScene, sample_scene  # noqa: E402
from evaluation.clips.truth import ClipSettings, Truth, TruthFolder  # noqa: E402
from evaluation.guidance_gaps import as_scalars  # noqa: E402
from evaluation.metrics.pixels import psnr  # noqa: E402
from evaluation.sampling import Sampler, SamplingSettings  # noqa: E402
from pipelines.loading import load_pipeline  # noqa: E402
from pipelines.music_to_pose_pipeline import MusicToPosePipeline  # noqa: E402
from pipelines.panels import frames_to_uint8  # noqa: E402
from training.objective import DiffusionObjective  # noqa: E402

START_FRAME = 8
NUM_FEATURES, NUM_KEY_POINTS = 35, 134
SILHOUETTE_THRESHOLD = 40


def silhouettes(frames: np.ndarray, scene: DemoScene, frame_indices: np.ndarray) -> np.ndarray:
    """Return bool [F, H, W]: where the dancer is, in frames uint8 [F, H, W, 3]."""
    stages = np.stack([scene.empty_stage(int(index)) for index in frame_indices])
    return np.abs(frames.astype(int) - stages).max(axis=-1) > SILHOUETTE_THRESHOLD


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean intersection over union of silhouettes bool [F, H, W]."""
    union = (first | second).sum(axis=(1, 2))
    return float(((first & second).sum(axis=(1, 2)) / np.maximum(union, 1)).mean())


def clip_psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two uint8 clips, in dB: of their frames' mean error."""
    return float(-10 * np.log10(np.mean(10 ** (-psnr(first, second) / 10))))


def backdrop_light(frames: np.ndarray) -> np.ndarray:
    """Return the brightness [F] of the backdrop's edges, less the clip's mean."""
    height, width = frames.shape[1:3]
    edges = np.concatenate([frames[:, : height * 4 // 5, : width // 10],
                            frames[:, : height * 4 // 5, -(width // 10) :]], axis=2)  # fmt: skip
    light = edges.mean(axis=(1, 2, 3))
    return light - light.mean()


def floor_hue(frames: np.ndarray) -> np.ndarray:
    """Return the hue in degrees [F] of the floor's two corners."""
    height, width = frames.shape[1:3]
    floor, corner = frames[:, height * 7 // 8 :], width // 6
    floor = np.concatenate([floor[:, :, :corner], floor[:, :, -corner:]], axis=2).mean(axis=(1, 2))
    return 2.0 * cv2.cvtColor(floor[None].round().astype(np.uint8), cv2.COLOR_RGB2HSV)[0, :, 0]


def read_clips(data_dir: Path, config, start_frame: int, num_frames: int | None) -> Sequence[Truth]:
    """Return the clips of a folder, fitted to the frames of a pipeline with this configuration."""
    size = (config.height, config.width)
    channels = {"music": NUM_FEATURES, "pose": NUM_KEY_POINTS}
    settings = ClipSettings(start_frame, num_frames, config.frame_stride, size)
    folder = TruthFolder(data_dir, channels, settings)
    return [folder.clip(name) for name in folder.sample_ids]


class HeldOutClips:
    """The held-out clips and a trained model to sample them with."""

    def __init__(self, model_path: Path, data_dir: Path, num_clips: int | None, settings: SamplingSettings):
        self.sampler = Sampler(load_pipeline(model_path), settings, model_path)
        config = self.sampler.pipeline.config
        self.clips = read_clips(data_dir, config, START_FRAME, config.sequence_length)[:num_clips]
        self.features = data_dir / "music_features"

    def gaps(self) -> dict[str, float]:
        """Return the validation loss, and how much it rises with each condition taken from the next clip."""
        rows = self.sampler.losses(self.clips, DiffusionObjective(self.sampler.pipeline.scheduler))
        found = as_scalars(rows)
        return {name: value for name, value in found.items() if name == "val_loss" or "gap" in name}

    def danced(self, index: int, *, music: int, model: MusicToPosePipeline) -> np.ndarray:
        """Clip `index` danced to poses that a model makes of the song of the clip named."""
        clip, song = self.clips[index], self.clips[music % len(self.clips)]
        dancer, rows = sample_scene(clip.sample_id).dancer, np.load(self.features / f"{song.sample_id}.npy")
        generator = torch.Generator().manual_seed(index)
        track = model(rows, key_points(dancer, standing(dancer)), generator=generator).key_points[0]
        pose = torch.from_numpy(track[clip.frames])  # frames are square: heights are fractions
        return self.sampler.sample(clip, {"pose": pose, "music": song.guidance["music"]})

    def sample(self, index: int, *, pose: int | None, music: int | None) -> np.ndarray:
        """Clip `index` danced to the pose and music of the clips named: uint8 [F, H, W, 3]."""
        sources = {"pose": pose, "music": music}
        guidance = {
            name: self.clips[source % len(self.clips)].guidance[name]
            for name, source in sources.items() if source is not None
        }  # fmt: skip
        return self.sampler.sample(self.clips[index], guidance)


def frames_of(clip: Truth) -> np.ndarray:
    """Return a clip's true frames, uint8 [F, H, W, 3]."""
    return np.stack(list(clip.source()()))


def measure(
    held_out: HeldOutClips, dances: MusicToPosePipeline | None = None
) -> tuple[dict[str, float], list[np.ndarray]]:
    """Return the means over all clips, and the rows of the sheet."""
    rows, sheet, light = [], [], {"true": [], "sampled": [], "from_music": []}
    for index, clip in enumerate(held_out.clips):
        scene, truth, frame_indices = sample_scene(clip.sample_id), frames_of(clip), clip.frames
        body = silhouettes(truth, scene, frame_indices)
        sampled = held_out.sample(index, pose=index, music=index)
        other_pose = held_out.sample(index, pose=index + 1, music=index)
        from_music = held_out.sample(index, pose=None, music=index)
        other_music = held_out.sample(index, pose=None, music=index + 1)
        reference = frames_to_uint8(reference_transform(clip.reference, clip.size)[None])

        def hue_is_right(frames, truth=truth):
            difference = np.abs(floor_hue(frames) - floor_hue(truth))
            return float((np.minimum(difference, 360 - difference) < 30).mean())

        def overlap_with_truth(frames, body=body, scene=scene, frame_indices=frame_indices):
            return overlap(silhouettes(frames, scene, frame_indices), body)

        rows.append({
            "psnr": clip_psnr(sampled, truth),
            "psnr_of_frames": psnr(sampled, truth).mean(),
            "psnr_shuffled_pose": clip_psnr(other_pose, truth),
            "psnr_reference_repeated": clip_psnr(np.broadcast_to(reference, truth.shape), truth),
            "overlap": overlap_with_truth(sampled),
            "overlap_shuffled_pose": overlap_with_truth(other_pose),
            "overlap_music_only": overlap_with_truth(from_music),
            "overlap_music_only_shuffled": overlap_with_truth(other_music),
            "floor_right": hue_is_right(sampled),
            "floor_right_music_only": hue_is_right(from_music),
            "floor_right_music_only_shuffled": hue_is_right(other_music),
        })  # fmt: skip
        for name, music in (("", index), ("_shuffled", index + 1)) if dances else ():
            frames = held_out.danced(index, music=music, model=dances)
            rows[-1][f"overlap_image_and_song{name}"] = overlap_with_truth(frames)
        for name, frames in (("true", truth), ("sampled", sampled), ("from_music", from_music)):
            light[name].append(backdrop_light(frames))
        sheet.append(sheet_row(reference[0], clip.guidance["pose"], truth, sampled, from_music))
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    true_light = np.concatenate(light["true"])
    for name in ("sampled", "from_music"):
        means[f"light_correlation_{name}"] = float(np.corrcoef(true_light, np.concatenate(light[name]))[0, 1])
    means |= held_out.gaps()
    return means, sheet


def sheet_row(reference: np.ndarray, pose: torch.Tensor, truth: np.ndarray, *clips: np.ndarray) -> np.ndarray:
    """Return [reference | for three frames: pose, truth, prediction, prediction from music only], uint8."""
    size = truth.shape[1:3]
    columns = [reference]
    for frame in (0, len(truth) // 2, len(truth) - 1):
        columns += [draw_pose(pose[frame], size), truth[frame], *(clip[frame] for clip in clips)]
    return np.concatenate(columns, axis=1)


def caption_row(size: int) -> np.ndarray:
    """Return the names of the sheet's columns."""
    names = ["reference", *3 * ["pose", "ground truth", "prediction", "music only"]]
    cells = [np.full((20, size, 3), 255, np.uint8) for _ in names]
    for cell, name in zip(cells, names, strict=True):
        cv2.putText(cell, name, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate(cells, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model_path", type=Path, nargs="+", required=True)
    parser.add_argument("--data_dir", type=Path, default=Path("demo_data/validation"))
    parser.add_argument("--num_clips", type=int, help="the first so many clips only")
    parser.add_argument("--num_inference_steps", type=int, default=12)
    parser.add_argument("--guidance_scale", type=float, default=2.0)
    parser.add_argument("--music_to_pose_path", type=Path, help="a trained model of dances, final/")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sheet", type=Path, help="image of the first model's clips")
    parser.add_argument("--sheet_rows", type=int, default=12, help="clips on the sheet")
    arguments = parser.parse_args()
    dances = arguments.music_to_pose_path and MusicToPosePipeline.from_pretrained(
        arguments.music_to_pose_path
    )
    results = {}
    for model_path in arguments.model_path:
        settings = SamplingSettings(arguments.num_inference_steps, arguments.guidance_scale, seed=0)
        held_out = HeldOutClips(model_path, arguments.data_dir, arguments.num_clips, settings)
        means, sheet = measure(held_out, dances)
        results[str(model_path)] = means
        print(model_path, *(f"{name:32} {value:8.3f}" for name, value in means.items()), sep="\n", flush=True)
        if arguments.sheet and model_path == arguments.model_path[0]:
            rows = [caption_row(sheet[0].shape[0]), *sheet[: arguments.sheet_rows]]
            cv2.imwrite(str(arguments.sheet), np.concatenate(rows)[..., ::-1])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
