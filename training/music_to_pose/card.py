"""What the model card says of a model of dances."""

from pathlib import Path

from datasets import read_report
from training.publishing.card import (
    OF_A_SONG,
    ModelDescription,
    data_rows,
    guidance_rows,
    names_of,
    setting_rows,
)
from training.settings.fields import OptimizationSettings

from .data import DanceData
from .settings import DanceObjectiveSettings, MusicToPoseArguments, NetworkSettings

ALWAYS = (
    "hidden_size", "num_layers", "num_heads", "sequence_length", "learning_rate", "lr_scheduler",
    "mixed_precision", "use_ema", "seed",
)  # fmt: skip
OTHERS = (
    "music_groups", "beat_channel", "time_stretch", "random_flip",
    *names_of(NetworkSettings, DanceObjectiveSettings, OptimizationSettings),
)  # fmt: skip
COMMAND = (
    "python", "sample_music_to_pose.py", "--model_path", "FOLDER", "--reference_image", "PERSON.png",
    "--music", "MUSIC", "--output_dir", "DANCE",
)  # fmt: skip


def describe(arguments: MusicToPoseArguments, data: DanceData) -> ModelDescription:
    """Return the description of a run's model."""
    recipes = {"music": data.music_recipe, "pose": data.pose_recipe}
    return ModelDescription(
        title="Dances from music",
        summary=(
            "Music and the pose of a person go in; a dance comes out, as key points for a model that "
            "`train_guidance.py` has trained with pose. It is a diffusion model of tracks of key points. "
            "This folder is a saved pipeline of diffusers, but its classes are in the code named below: "
            "diffusers alone cannot load it."
        ),
        command=COMMAND,
        inputs=(
            "FOLDER is the folder of this file, PERSON.png an image that shows the whole person, MUSIC "
            "features as training data have them, DANCE the folder of pose files to write. `--song SONG.mp3` "
            f"instead of `--music` {OF_A_SONG}. `--reference_pose POSE` instead of `--reference_image` takes "
            "a pose."
        ),
        data=data_rows(data, read_report(Path(arguments.output_dir, "data_report.json")))
        | guidance_rows(arguments.channels, recipes)
        | {"frames": f"{arguments.sequence_length} per window, {data.frame_rate:.4g} per second"},
        settings=setting_rows(arguments, ALWAYS, OTHERS),
        starts={},
        bases=[],
        tags=["music-to-dance", "motion-generation"],
    )
