"""Does the loss hear the music? Position loss with another music than the dance's own, at fixed noise."""

from __future__ import annotations

import numpy as np
import torch

from evaluation.confidence import bootstrap_interval
from models.music_to_pose.objective import Draw, MusicToPoseObjective, make_noise_scheduler
from system.errors import UserError

from .models import Model
from .takes import Take

BATCH = 16
NOISES = 2  # of each window


class GapWindows:
    """Windows of takes, each with its own, another's and shifted music; random numbers are drawn once."""

    def __init__(self, model: Model, takes: list[Take], num_windows: int) -> None:
        self.model, self.length = model.model, model.config.sequence_length
        self.takes = [take for take in takes if len(take.key_points) >= self.length]
        self.music = [self.model.music_features(take.rows) for take in self.takes]
        places = [
            (number, start)
            for number, take in enumerate(self.takes)
            for start in range(0, len(take.key_points) - self.length + 1, max(1, self.length // 2))
        ]
        if len(places) < 2:
            raise UserError(f"{len(places)} windows of {self.length} frames; a gap needs two; add takes")
        chosen = np.linspace(0, len(places) - 1, min(num_windows, len(places))).round().astype(int)
        self.places = [places[index] for index in chosen] * NOISES
        random, count = np.random.default_rng(0), len(self.places)
        self.objective = MusicToPoseObjective(make_noise_scheduler())
        steps = (np.arange(count) + 0.5) / count * self.objective.scheduler.config.num_train_timesteps
        self.timesteps = torch.from_numpy(random.permutation(steps).astype(np.int64))
        self.shifts = np.rint(random.uniform(0.2, 0.8, count) * model.config.frame_rate).astype(int)

    def losses(self, source: str = "own", silent: tuple[str, ...] = ()) -> np.ndarray:
        """Return the position loss of each window; source: of its music; silent: groups left out."""
        numbers = np.arange(len(self.places))
        parts = np.split(numbers, range(BATCH, len(numbers), BATCH))
        return np.concatenate([self._losses(part, source, silent) for part in parts])

    @torch.no_grad()
    def _losses(self, numbers: np.ndarray, source: str, silent: tuple[str, ...]) -> np.ndarray:
        items = [self._item(number, source) for number in numbers]
        batch = {name: torch.stack([one[name] for one in items]).to(self.model.device) for name in items[0]}
        shape = (self.length, self.model.representation.num_values)
        generators = [torch.Generator().manual_seed(int(number)) for number in numbers]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        groups = self.model.music_features.groups
        heard = {name: torch.full((len(numbers),), name not in silent) for name in groups}
        draw = Draw(noise, self.timesteps[torch.from_numpy(numbers)], heard)
        return self.objective.losses(self.model, batch, draw)["position"].cpu().numpy().astype(np.float64)

    def _item(self, number: int, source: str) -> dict[str, torch.Tensor]:
        take, start = self.places[number]
        heard, begin = take, start
        if source == "shuffled":
            count = len(self.places) // NOISES
            heard, begin = self.places[(number % count + count // 2) % count]
        elif source == "shifted":
            is_room = start + self.shifts[number] + self.length <= len(self.music[take])
            begin = start + self.shifts[number] if is_room else max(0, start - self.shifts[number])
        arrays = {
            "key_points": self.takes[take].key_points[start : start + self.length],
            "reference_pose": self.takes[take].reference,
            "music": self.music[heard][begin : begin + self.length],
        }
        return {name: torch.from_numpy(np.ascontiguousarray(rows)) for name, rows in arrays.items()}

    def gaps(self) -> dict:
        """Return the loss, {change of the music: [gap, low, high]}, and shuffled gaps by noise level."""
        own, groups = self.losses(), tuple(self.model.music_features.groups)
        changes = {"shuffled": ("shuffled", ()), "shifted": ("shifted", ()), "without music": ("own", groups)}
        if len(groups) > 1:
            changes |= {f"without {name}": ("own", (name,)) for name in groups}
        rises = {name: self.losses(*change) - own for name, change in changes.items()}
        gaps = {}
        for name, rise in rises.items():
            relative = rise.reshape(NOISES, -1).mean(axis=0) / own.mean()  # per window
            gaps[name] = [float(relative.mean()), *bootstrap_interval(relative)]
        levels = np.minimum(
            self.timesteps.numpy() * 3 // self.objective.scheduler.config.num_train_timesteps, 2
        )
        by_level = {
            name: float(rises["shuffled"][levels == place].sum() / own[levels == place].sum())
            for place, name in enumerate(("low", "middle", "high")) if (levels == place).any()
        }  # fmt: skip
        counted = {"loss": float(own.mean()), "num_windows": len(own) // NOISES}
        return {**counted, "gaps": gaps, "shuffled by noise level": by_level}
