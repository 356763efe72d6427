"""Validation of dances on fixed windows of held-out songs: numbers, and dances to look at and to hear.

Windows, noise and timesteps are the same at every validation, in every run and for any number of processes.
"""

import torch

from caching.batch_encoding import move_batch
from datasets import collate_clips
from evaluation.guidance_gaps import VALIDATION_SEED
from models import MusicToPoseModel
from models.music_to_pose.objective import Draw, MusicToPoseObjective
from training.objective import mix_seed
from training.run_log import RunLog
from training.validation.guidance_watch import GuidanceWatch
from training.validation.validator import choose_clips, summary_line

from .data import DanceData
from .settings import MusicToPoseArguments

LEVELS = ("low", "middle", "high")  # thirds of the noise levels


class DanceValidator:
    """The fixed windows of a run, and what is measured and drawn of them."""

    def __init__(
        self, data: DanceData, objective: MusicToPoseObjective, settings: MusicToPoseArguments,
        device: torch.device,
    ):  # fmt: skip
        self.objective, self.settings, self.device = objective, settings, device
        dataset, places = data.validation_set, data.validation_indices
        clips = choose_clips(dataset, places, settings.num_validation_clips)
        begins = {index: float(dataset.read_window(index)["start_seconds"]) for index, _ in clips}
        self.windows = [
            dataset.read_window(index, begins[index] + start / data.frame_rate) for index, start in clips
        ]
        self.watch = GuidanceWatch()

    def run(self, model: MusicToPoseModel, log: RunLog, step: int) -> dict[str, float]:
        """Measure, sample, draw and log; return the scalars."""
        model.eval()
        scalars = self.measure_losses(model)
        log.scalars(scalars, step)
        for line in (summary_line(scalars, step), *self.watch.look(scalars)):
            log.say(line)
        model.train()
        return scalars

    @torch.no_grad()
    def measure_losses(self, model: MusicToPoseModel) -> dict[str, float]:
        """Return val_loss, val_loss/LEVEL and guidance_gap/music, with the music of the next window."""
        batch = move_batch(collate_clips(self.windows), self.device)
        other = {**batch, "music": batch["music"].roll(1, 0)}
        found = {}
        for level, name in enumerate(LEVELS):
            draw = self.draw(model, level)
            for prefix, one in (("own", batch), ("other", other)):
                found[prefix, name] = float(self.objective(model, one, draw))
        own, others = (
            sum(found[prefix, name] for name in LEVELS) / len(LEVELS) for prefix in ("own", "other")
        )
        levels = {f"val_loss/{name}": found["own", name] for name in LEVELS}
        gap = {} if len(self.windows) < 2 else {"guidance_gap/music": (others - own) / own}
        return {"val_loss": own, **levels, **gap}

    def draw(self, model: MusicToPoseModel, level: int) -> Draw:
        """Return the same noise as ever, at timesteps spread over a third; no music is dropped."""
        count, groups = len(self.windows), [*model.music_features.groups]
        shape = (count, self.settings.sequence_length, model.representation.num_values)
        seeds = [mix_seed(VALIDATION_SEED, level, place) for place in range(count)]
        noise = self.objective.draw(shape, seeds, groups).noise
        num_steps = self.objective.scheduler.config.num_train_timesteps
        share = (level + (torch.arange(count) + 0.5) / count) / len(LEVELS)
        heard = torch.ones(count, dtype=torch.bool)
        return Draw(noise, (share * num_steps).long(), dict.fromkeys(groups, heard))
