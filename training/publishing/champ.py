"""What the model card says of a CHAMP model."""

from collections.abc import Sequence
from pathlib import Path

from datasets import read_report
from training.buckets.sizes import shown_size
from training.data import TrainingData
from training.settings.fields import (
    AdapterSettings,
    DataSettings,
    ModelSettings,
    ObjectiveSettings,
    OptimizationSettings,
    TrainingArguments,
)
from training.stages import STAGES

from .card import (
    OF_A_SONG,
    ModelDescription,
    data_rows,
    guidance_rows,
    is_hub_id,
    listed,
    names_of,
    public_name,
    setting_rows,
)

ALWAYS = (
    "training_stage", "learning_rate", "lr_scheduler", "prediction_type", "snr_gamma", "mixed_precision",
    "use_ema", "seed",
)  # fmt: skip
OTHERS = (
    "guidance_embedding_channels", "guidance_block_out_channels", "center_crop", "random_flip",
    *names_of(AdapterSettings),
    *names_of(ObjectiveSettings, OptimizationSettings),
)  # fmt: skip
PLACES = {"pose": ("--poses", "POSES"), "music": ("--music", "MUSIC")}  # of sample_guidance.py


def describe(arguments: TrainingArguments, data: TrainingData) -> ModelDescription:
    """Return the description of a run's model."""
    types, moves = arguments.guidance_types, STAGES[arguments.training_stage].has_motion_modules
    channels = dict(zip(types, arguments.guidance_input_channels, strict=True))
    recipes = {"music": data.music_recipe, "pose": data.pose_recipe}
    own_loss = {"loss": f"with {public_name(arguments.loss)}"} if arguments.loss else {}
    sits_on = arguments.champ_checkpoint_dir or arguments.pretrained_model_name_or_path
    lora = None if arguments.lora_rank is None else public_name(sits_on)
    return ModelDescription(
        title=f"{'CHAMP' if lora is None else 'LoRA for CHAMP'}, guided by {listed(types)}",
        summary=summary(types, moves=moves, lora=lora),
        command=command(types, arguments.guidance_modules, is_lora=lora is not None),
        inputs=describe_inputs(types, base=lora),
        data=data_rows(data, read_report(Path(arguments.output_dir, "data_report.json")))
        | guidance_rows(channels, recipes)
        | {"frames": describe_frames(arguments, data)},
        settings=setting_rows(arguments, ALWAYS, OTHERS) | own_loss,
        starts=starts(arguments),
        bases=[name for name in dict.fromkeys(read_by_name(arguments).values()) if name and is_hub_id(name)],
        tags=["champ", "human-image-animation", *(["lora"] if lora else []), *tags_of(types)],
        pipeline_tag="image-to-video" if moves else "image-to-image",
    )


def tags_of(types: Sequence[str]) -> list[str]:
    return [f"{name}-guidance" for name in types]


def summary(types: Sequence[str], *, moves: bool, lora: str | None) -> str:
    """Return what the model is; lora: the name of what adapters sit on."""
    comes = f"{'a video' if moves else 'frames'} of that person, moved as the guidance says,"
    text = (
        f"An image of a person and guidance ({listed(types)}) go in; {comes} comes out. The networks are "
        "those of [CHAMP](https://arxiv.org/abs/2403.14781). "
    )
    if lora is not None:
        return f"Adapters (LoRA) for a model ({lora}), of which they hold no copy. With them: {text}"
    return (
        f"{text}This folder is a saved pipeline of diffusers, but its classes are in the code named below: "
        "diffusers alone cannot load it."
    )


def command(types: Sequence[str], guidance_modules: Sequence[str], *, is_lora: bool = False) -> list[str]:
    """Return the words that sample with a model of these guidance types, or with adapters for one."""
    model = ["--model_path", "BASE", "--lora", "FOLDER"] if is_lora else ["--model_path", "FOLDER"]
    words = ["python", "sample_guidance.py", *model, "--reference_image", "PERSON.png"]
    others = [f"{name}={name.upper()}" for name in types if name not in PLACES]
    words += [word for name in types if name in PLACES for word in PLACES[name]]
    words += ["--guidance", *others] if others else []
    words += ["--guidance_modules", *map(public_name, guidance_modules)] if guidance_modules else []
    return [*words, "--output", "VIDEO.mp4"]


def describe_inputs(types: Sequence[str], *, base: str | None = None) -> str:
    """Return what the words in capitals of the command stand for; base: the name of what adapters sit on."""
    tracks = [PLACES[name][1] if name in PLACES else name.upper() for name in types]
    sits_on = "" if base is None else f"BASE is the folder of the model that it was trained on ({base}). "
    text = (
        f"{sits_on}FOLDER is the folder of this file, PERSON.png an image of the person. "
        f"{listed(tracks)}: one file per frame in a folder, or one file for all, as training data have them; "
        "`prepare_guidance.py` makes poses and music features of a video."
    )
    if "music" in types:
        text += f" `--song SONG.mp3` instead of `--music` {OF_A_SONG}."
    return text


def describe_frames(settings: DataSettings, data: TrainingData) -> str:
    """Return size, number and rate of a clip's frames."""
    keywords, sides = data.clip_keywords, settings.resolution
    size = f"{sides[0]} x {sides[-1]} pixels (height x width), `--fit {settings.fit}`"
    if data.clip_sizes:
        sizes = ", ".join(map(shown_size, sorted(set(data.clip_sizes.values()), reverse=True)))
        size += f", trained at {sizes} (`--aspect_buckets`)"
    count, stride = keywords["sequence_length"], keywords["frame_stride"]
    if count == 1:
        return f"{size}; single frames"
    rate = f"{data.frame_rate / stride:.4g} per second"
    return f"{size}; {count} per clip, {rate}" + (f" (`--frame_stride {stride}`)" if stride > 1 else "")


def starts(settings: ModelSettings) -> dict[str, str | None]:
    """Return {part: the weights that it started from}."""
    moves = STAGES[settings.training_stage].has_motion_modules
    return read_by_name(settings) | {
        "motion modules": settings.motion_module_path if moves else None,
        "CHAMP": settings.champ_checkpoint_dir,
    }


def read_by_name(settings: ModelSettings) -> dict[str, str | None]:
    """Return those that may come from the hub."""
    return {
        "Stable Diffusion": settings.pretrained_model_name_or_path,
        "VAE": settings.vae_model_name_or_path,
        "image encoder": settings.image_encoder_name_or_path,
    }
