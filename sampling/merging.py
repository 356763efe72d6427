"""A model with its adapters merged in, as a folder of its own: sample_guidance.py --merge_lora."""

import argparse
import shutil
from pathlib import Path

from models.lora import has_lora
from pipelines.champ_pipeline import ChampPipeline
from pipelines.flags import lora_scales
from pipelines.loading import add_adapters, load_pipeline
from system.errors import ConfigError
from system.user_code import import_user_modules
from system.whole_files import whole_folder

from .outputs import refusals

CARD_NAME, MODEL_NAME = "README.md", "model_index.json"
CARD = """---
library_name: diffusers
license: unknown
tags:
- champ
- human-image-animation
---

# {title}

A model with adapters (LoRA) merged into its weights. It is sampled as its base, and needs no adapters any
more.

| | |
|---|---|
{rows}

{cards}
What the model cards of these parts say of licences, and of the people in their training videos, holds for
this model too.
"""


def merge_adapters(arguments: argparse.Namespace, pipeline: ChampPipeline | None = None) -> Path:
    """Write the model of --model_path with --lora merged in to --merge_lora. Raises UserError.

    pipeline: a model that has its adapters on it already, to be merged instead.
    """
    path, adapters = Path(arguments.merge_lora), lora_scales(arguments)
    check_free(path, [arguments.model_path, *arguments.lora], may_replace=arguments.overwrite)
    if pipeline is None:
        import_user_modules(arguments.guidance_modules)
        pipeline = load_pipeline(arguments.model_path)
        add_adapters(pipeline, arguments.model_path, adapters)
    if not has_lora(pipeline.model):
        raise ConfigError(f"--merge_lora: --model_path {arguments.model_path} has no adapters to merge in")
    pipeline.fuse_lora()
    with refusals(path, "--merge_lora"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(path.resolve()) as folder:
            pipeline.save_pretrained(folder)
            write_card(folder, path.resolve().name, Path(arguments.model_path), adapters)
    return path


def check_free(path: Path, used: list[str], *, may_replace: bool) -> None:
    """Raise ConfigError where the folder to write is there already, but for a model that may be replaced.

    used: what is read, which must not lie in it.
    """
    place = path.resolve()
    for one in used:
        if place in (Path(one).resolve(), *Path(one).resolve().parents):
            raise ConfigError(f"--merge_lora {path}: {one}, which is read, lies there; choose another folder")
    if not path.exists():
        return
    if not may_replace:
        raise ConfigError(f"--merge_lora: {path} exists; add --overwrite, or choose another folder")
    if not (path / MODEL_NAME).is_file():
        raise ConfigError(f"--merge_lora: {path} is no model, and stays as it is; choose another folder")


def write_card(folder: Path, name: str, base: Path, adapters: list[tuple[str, float]]) -> None:
    """Write the model card of what is merged, and beside it the cards of its parts where they have some."""
    rows, cards = [], []
    parts = [("base", base, "")]
    parts += [("adapter", Path(path), f", scale {scale:g}") for path, scale in adapters]
    for place, (kind, path, how) in enumerate(parts):
        part = path.parent if path.is_file() else path
        rows.append(f"| {kind} | `{shown(part)}`{how} |")
        if (part / CARD_NAME).is_file():
            cards.append(f"README_{kind}{f'_{place}' if place else ''}.md")
            shutil.copyfile(part / CARD_NAME, folder / cards[-1])
    beside = f"Beside this file: {', '.join(f'`{card}`' for card in cards)}." if cards else ""
    text = CARD.format(title=f"CHAMP: {name}", rows="\n".join(rows), cards=beside)
    (folder / CARD_NAME).write_text(text, encoding="utf-8", newline="\n")


def shown(folder: Path) -> str:
    """Return the last names of a folder: no path of the machine, but more than "final"."""
    parts = folder.resolve().parts
    return "/".join(parts[-2 if parts[-1] == "final" else -1 :])
