"""The dances of a run: their folders, their check, and what the columns of their music are."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from accelerate import Accelerator

from datasets import DanceDataset, DataError
from datasets.data_folder import recorded_recipe
from models.music_to_pose.music import BEAT_CHANNELS, GROUPS_OF_RECIPES, UNKNOWN_LAYOUT
from training.data import DataFolders, SampleSets, agreed_recipe, open_sets

from .settings import GROUPS_EXAMPLE, MusicToPoseArguments, read_groups

UNKNOWN_COLUMNS = (
    "the music features are {taken}: music_features in metadata/NAME.json names none of the recipes "
    f"{', '.join(GROUPS_OF_RECIPES)}; {{flags}} can tell more, for example {GROUPS_EXAMPLE} --beat_channel 34"
)


class DanceFolders(DataFolders):
    """The run's training and validation folder, of which no video is needed."""

    unit = "dance"

    def _report_on_shards(self, data_root: str) -> bool:
        fix = "unpack them with pack_guidance.py --unpack, or give the data folder"
        raise DataError(data_root, "is of shards, which train_music_to_pose.py does not read", fix)

    def read(self, data_root: str, left_out: Sequence[tuple[str, str]] | None) -> DanceDataset:
        settings = self.settings
        return DanceDataset(
            data_root, settings.num_features, settings.num_key_points, left_out=left_out,
            sequence_length=settings.sequence_length, frame_rate=settings.frame_rate,
            music_feature_fps=settings.music_feature_fps, time_stretch=settings.time_stretch,
            random_flip=settings.random_flip, seed=settings.seed,
        )  # fmt: skip

    def check_keywords(self) -> dict:
        # A take may be shorter than a window.
        fps = self.settings.music_feature_fps
        return {"music_feature_fps": fps, "sequence_length": 1, "needs_videos": False}


@dataclass
class DanceData(SampleSets):
    """The dances of a run, all at one frame rate."""

    frame_rate: float
    music_recipe: str | None  # that made the music features, where the data says it
    pose_recipe: str | None = None  # the same of the poses

    def notes(self) -> list[str]:
        """Return lines for the user; of what the model hears in the music, too, which is set before."""
        heard, lines = self.train_set.music_features, [*self.left_out_lines(), self.note]
        unknown = [("one group", "--music_groups")] if UNKNOWN_LAYOUT in heard.groups else []
        unknown += [("without beats", "--beat_channel")] if heard.beat_channel is None else []
        if unknown:
            taken, flags = (" and ".join(words) for words in zip(*unknown, strict=True))
            lines.append(UNKNOWN_COLUMNS.format(taken=taken, flags=flags))
        return lines


def open_data(folders: DanceFolders, accelerator: Accelerator) -> DanceData:
    """Return the training dances and those to validate on. Raises DataError where they do not fit."""
    sets, settings = open_sets(folders, accelerator), folders.settings
    recipe = recorded_recipe(settings.train_data_dir, sets.train_set.sample_ids)
    held_out_dir = settings.validation_data_dir or settings.train_data_dir
    held_out_recipe = recorded_recipe(held_out_dir, sets.validation_set.sample_ids)
    if None not in (recipe, held_out_recipe) and recipe != held_out_recipe:
        problem = f"its music features are {held_out_recipe}, those of the training data are {recipe}"
        raise DataError(held_out_dir, problem, "extract the music features of both alike")
    frame_rate = sets.validation_set.frame_rate = sets.train_set.frame_rate
    recorded = functools.partial(recorded_recipe, settings.train_data_dir, sets.train_set.sample_ids)
    pose_recipe = agreed_recipe(recorded, "pose")
    return DanceData(**vars(sets), frame_rate=frame_rate, music_recipe=recipe, pose_recipe=pose_recipe)


def music_layout(settings: MusicToPoseArguments, recipe: str | None) -> dict:
    """Return the groups and the beats' column of the music's features: the settings', else the recipe's."""
    groups, channel = read_groups(settings.music_groups, settings.num_features), settings.beat_channel
    return {
        "music_groups": groups or GROUPS_OF_RECIPES.get(recipe),
        "beat_channel": BEAT_CHANNELS.get(recipe) if channel is None else channel,
    }
