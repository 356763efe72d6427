"""Validation of dances on fixed windows of held-out songs: numbers, and dances to look at and to hear.

Windows, noise and timesteps are the same at every validation, in every run and for any number of processes.
"""

import math

import numpy as np
import torch

from caching.batch_encoding import move_batch
from datasets import collate_clips
from evaluation.guidance_gaps import VALIDATION_SEED
from evaluation.metrics.motion import beside_truth, motion_of, torso_length
from evaluation.metrics.music import beat_alignment_gain, motion_beats
from models import MusicToPoseModel
from models.music_to_pose.music import beat_frames
from models.music_to_pose.objective import Draw, MusicToPoseObjective
from models.music_to_pose.sampling import make_sampler, sample_track
from pipelines.panels import draw_guidance, make_panel
from system.errors import UserError
from training.objective import mix_seed
from training.validation.validator import PanelValidator, choose_clips

from .data import DanceData
from .settings import MusicToPoseArguments

LEVELS = ("low", "middle", "high")  # thirds of the noise levels
LONGEST_SECONDS = 12.0  # of a sampled dance: several windows, and their seams
COLUMNS = ["truth", "generated", "to other music"]
COLUMN_SIZE = (256, 256)


class DanceValidator(PanelValidator):
    """The fixed windows of a run, and the songs about them that are danced to."""

    said = ("motion/jerk", "motion/speed", "motion/beat_gain")

    def __init__(
        self, data: DanceData, objective: MusicToPoseObjective, settings: MusicToPoseArguments,
        device: torch.device,
    ):  # fmt: skip
        self.objective, self.device, self.frame_rate = objective, device, data.frame_rate
        dataset = data.validation_set
        clips = choose_clips(dataset, data.validation_indices, settings.num_validation_clips)
        takes = [dataset.read_whole(index) for index, _ in clips]
        self.songs = [self.read_song(take, start) for take, (_, start) in zip(takes, clips, strict=True)]
        self.windows = [
            dataset.read_window(index, float(take["start_seconds"]) + start / self.frame_rate)
            for take, (index, start) in zip(takes, clips, strict=True)
        ]
        self.truth = [self.motion(song, song["key_points"].numpy()) for song in self.songs]
        super().__init__(settings, self.songs[0], dataset.video_path(clips[0][0]))

    def read_song(self, take: dict, start: int) -> dict:
        """Return at most LONGEST_SECONDS of a take, from a frame on where enough is left."""
        num_frames, longest = len(take["music"]), round(LONGEST_SECONDS * self.frame_rate)
        start = max(0, min(start, num_frames - longest))
        rows = slice(start, start + longest)
        seconds = take["start_seconds"] + torch.arange(num_frames) / self.frame_rate
        cut = {name: take[name][rows] for name in ("key_points", "music")}
        return take | cut | {"frame_seconds": seconds[rows]}

    def measure(self, model: MusicToPoseModel) -> tuple[dict[str, float], np.ndarray]:
        dances = [self.dance(model, place, song["music"]) for place, song in enumerate(self.songs)]
        other = self.songs[1 % len(self.songs)]["music"]
        rows = torch.arange(len(self.songs[0]["music"])) % len(other)  # a shorter song begins again
        shown = [self.songs[0]["key_points"].numpy(), dances[0], self.dance(model, 0, other[rows])]
        return self.losses(model) | self.motion_scalars(model, dances), draw_dances(shown)

    @torch.no_grad()
    def losses(self, model: MusicToPoseModel) -> dict[str, float]:
        """Return val_loss, val_loss/LEVEL and guidance_gap/music, with the music of the next window."""
        batch = move_batch(collate_clips(self.windows), self.device)
        other = batch | {"music": batch["music"].roll(1, 0)}
        own, others = {}, {}
        for level, name in enumerate(LEVELS):
            draw = self.draw(model, level)
            own[f"val_loss/{name}"] = float(self.objective(model, batch, draw))
            others[name] = float(self.objective(model, other, draw))
        loss, other_loss = (sum(some.values()) / len(LEVELS) for some in (own, others))
        gap = {"guidance_gap/music": (other_loss - loss) / loss} if len(self.windows) > 1 else {}
        return {"val_loss": loss, **own, **gap}

    def draw(self, model: MusicToPoseModel, level: int) -> Draw:
        """Return the same noise as ever, at timesteps spread over a third; no music is dropped."""
        count, groups = len(self.windows), [*model.music_features.groups]
        shape = (count, self.settings.sequence_length, model.representation.num_values)
        seeds = [mix_seed(VALIDATION_SEED, level, place) for place in range(count)]
        noise = self.objective.draw(shape, seeds, groups).noise
        share = (level + (torch.arange(count) + 0.5) / count) / len(LEVELS)
        timesteps = (share * self.objective.scheduler.config.num_train_timesteps).long()
        return Draw(noise, timesteps, dict.fromkeys(groups, torch.ones(count, dtype=torch.bool)))

    def dance(self, model: MusicToPoseModel, place: int, music: torch.Tensor) -> np.ndarray:
        """Return a dance [N, K, 3] of a song's dancer to music [N, D']; its noise is the place's."""
        reference = self.songs[place]["reference_pose"].to(self.device)
        values = sample_track(
            model, make_sampler(), music.to(self.device), reference,
            num_inference_steps=self.settings.num_inference_steps,
            guidance_scale=self.settings.guidance_scale,
            generator=torch.Generator().manual_seed(mix_seed(VALIDATION_SEED, place)),
        )  # [1, N, P]  # fmt: skip
        return model.representation.decode(values, reference[None])[0].float().cpu().numpy()

    def motion(self, song: dict, key_points: np.ndarray):
        return motion_of(key_points, self.frame_rate, torso_length(song["reference_pose"].numpy()[None]))

    def motion_scalars(self, model: MusicToPoseModel, dances: list[np.ndarray]) -> dict[str, float]:
        """Return motion/METRIC, without those that cannot be had of these songs."""
        motions = [self.motion(song, dance) for song, dance in zip(self.songs, dances, strict=True)]
        found = beside_truth(motions, self.truth)
        truth = [song["key_points"].numpy() for song in self.songs]
        found |= {"beat_gain": self.beat_gain(model, dances), "beat_gain_truth": self.beat_gain(model, truth)}
        return {f"motion/{name}": value for name, value in found.items() if math.isfinite(value)}

    def beat_gain(self, model: MusicToPoseModel, dances: list[np.ndarray]) -> float:
        """Return the mean beat alignment gain of dances to their own songs; NaN where no beats are known."""
        channel, gains = model.music_features.beat_channel, []
        for song, dance in zip(self.songs, dances, strict=True):
            beats = [] if channel is None else beat_frames(song["music"][:, channel].numpy())
            try:
                slowest, heard = motion_beats(dance, self.frame_rate), np.array(beats) / self.frame_rate
                gains.append(beat_alignment_gain(slowest, heard, len(dance) / self.frame_rate).gain)
            except UserError:  # no beat in this song, or no dancer in view
                continue
        return float(np.mean(gains)) if gains else math.nan


def draw_dances(dances: list[np.ndarray]) -> np.ndarray:
    """Return dances [N, K, 3] as skeletons side by side, uint8 [N, H, W, 3], in one square about all."""
    points = np.concatenate([dance[dance[..., 2] > 0][:, :2] for dance in dances])
    low, high = points.min(0), points.max(0)
    side = 1.1 * max(high - low)
    corner = (low + high - side) / 2
    placed = [np.concatenate([(dance[..., :2] - corner) / side, dance[..., 2:]], -1) for dance in dances]
    return make_panel([draw_guidance(dance, COLUMN_SIZE, "pose") for dance in placed], COLUMNS)
