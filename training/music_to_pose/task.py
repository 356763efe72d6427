"""Dances from music as a task for the loop: the model, its loss, its validation, its final pipeline."""

from pathlib import Path

from torch import nn

from models import MusicToPoseModel
from models.music_to_pose.objective import MusicToPoseObjective, make_noise_scheduler
from models.music_to_pose.sampling import make_sampler
from models.music_to_pose.statistics import Statistics
from pipelines.music_to_pose_pipeline import MusicToPosePipeline
from training.loop import Task
from training.objective import mix_seed, seed_step
from training.publishing.card import ModelDescription
from training.run_log import RunLog
from training.step import MicroBatch

from .card import describe
from .data import DanceData, music_layout
from .settings import MusicToPoseArguments, check_shares, read_shares
from .validator import DanceValidator


class MusicToPoseTask(Task):
    """A MusicToPoseModel and its objective, trained on `data`; `validator` is set before validation."""

    def __init__(
        self, arguments: MusicToPoseArguments, data: DanceData, model: MusicToPoseModel,
        objective: MusicToPoseObjective,
    ):  # fmt: skip
        self.arguments, self.data, self.model, self.objective = arguments, data, model, objective
        self.validator: DanceValidator | None = None

    def loss(self, model: nn.Module, batch: dict) -> MicroBatch:
        """Return the loss of a batch of B windows, its noise drawn from (seed, position)."""
        seeds = [mix_seed(self.arguments.seed, position) for position in batch["position"]]
        shape = (*batch["key_points"].shape[:2], self.model.representation.num_values)  # [B, F, P]
        draw = self.objective.draw(shape, seeds, [*self.model.music_features.groups])

        def repeat(model: nn.Module):
            return self.objective(model, batch, draw)

        return MicroBatch(batch["sample_id"], repeat(model), repeat, draw.timesteps)

    def start_afresh(self) -> None:
        """Measure the training dances: means, deviations and longest bones are saved with the model."""
        statistics = Statistics(self.model)
        for index in self.data.train_indices:
            take = self.data.train_set.read_whole(index)
            statistics.add(take["key_points"], take["reference_pose"], take["music"])
        statistics.give_to(self.model)

    def validate(self, log: RunLog, step: int) -> dict[str, float]:
        return self.validator.run(self.model, log, step)

    def describe(self) -> ModelDescription:
        return describe(self.arguments, self.data)

    def write_final(self, folder: Path) -> None:
        recipes = {"music_recipe": self.data.music_recipe, "pose_recipe": self.data.pose_recipe}
        pipeline = MusicToPosePipeline(self.model, make_sampler(), **recipes)
        pipeline.save_pretrained(folder)


def make_task(arguments: MusicToPoseArguments, data: DanceData) -> MusicToPoseTask:
    """Return what is trained. Raises ConfigError for a share of an unknown group of music features."""
    seed_step(arguments.seed, 0, 0)  # new weights are drawn from the seed, the same in every process
    model = MusicToPoseModel(
        arguments.num_key_points, arguments.num_features, **music_layout(arguments, data.music_recipe),
        frame_rate=data.frame_rate, sequence_length=arguments.sequence_length,
        hidden_size=arguments.hidden_size, num_layers=arguments.num_layers, num_heads=arguments.num_heads,
    )  # fmt: skip
    shares, music = read_shares(arguments.group_dropout), model.music_features
    check_shares(shares, music.groups)
    data.train_set.music_features = data.validation_set.music_features = music
    objective = MusicToPoseObjective(
        make_noise_scheduler(), music_dropout=arguments.guidance_dropout, group_dropout=shares,
        velocity_weight=arguments.velocity_weight, acceleration_weight=arguments.acceleration_weight,
        bone_weight=arguments.bone_weight, foot_weight=arguments.foot_weight,
    )  # fmt: skip
    return MusicToPoseTask(arguments, data, model, objective)
