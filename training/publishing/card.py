"""The model card as a text: its header for the hub, and the sections that every trainer has.

It is a function of the run: the same when that was stopped and resumed. It holds no date and no path of the
machine: what was a path is shown by its last name. Its last line is a digest, by which a card that somebody
has filled in is known.
"""

import hashlib
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PureWindowsPath

from huggingface_hub import ModelCard, ModelCardData

from datasets import DataReport
from training.checkpoints.saving import TrainerState
from training.data import SampleSets
from training.settings.fields import RunSettings, default_of, shown

CARD_NAME, NEW_CARD_NAME = "README.md", "README_new.md"  # the new one of a model whose card is filled in
DIGEST_LINE = "<!-- as training wrote it: {} -->\n"
WIDTH = 110  # of a line of text
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
OF_A_SONG = "makes the features of a sound file, where the recipe below can be followed"
TO_FILL_IN = "**to fill in**"
# As steps, clips per step; the last has no effect on the result.
TOLD_OTHERWISE = (
    "num_train_epochs", "max_train_steps", "train_batch_size", "gradient_accumulation_steps",
    "set_grads_to_none",
)  # fmt: skip

CARD = """# {title}

{summary}

## How to sample

In a checkout of CHAMP guidance training, the code that trained this model and wrote this file:

```bash
{command}
```

{inputs}

## Data

{data}

## Training

{settings}

Values of the last step:

{curves}

## Before it is passed on: licences

This file cannot know what the weights may be used for. It is to be settled, and filled in here:

- Licence of this model: {to_fill_in}, here and as `license` at the top of this file, where it says `unknown`.
{starts}
- Rights in the training data, videos and music: {to_fill_in}.

## People

- Consent of the people in the training videos: {to_fill_in}. A model can show those again whom it has seen.
- A sampled video shows a person doing what that person never did. Take images of people who have agreed to
  it, and pass no such video on as a recording.
- Videos that `sample_guidance.py` writes are tagged as generated (the mp4's comment, and IPTC's
  `trainedAlgorithmicMedia` in its XMP). Tags get lost when a video is edited or uploaded: say it beside the
  video, too.
"""


@dataclass(frozen=True)
class ModelDescription:
    """What a task says of its model."""

    title: str
    summary: str
    command: Sequence[str]  # words of a shell
    inputs: str  # what the words in capitals stand for
    data: Mapping[str, str]
    settings: Mapping[str, str]
    starts: Mapping[str, str | None]  # {part: path or hub id of the weights that it started from, or None}
    bases: Sequence[str]  # of these the hub ids
    tags: Sequence[str]
    pipeline_tag: str | None = None  # of the hub's list of tasks


def write_card(
    folder: Path, description: ModelDescription, state: TrainerState, earlier: Path | None = None
) -> str | None:
    """Write the model card into the folder of the final model, without losing one that was filled in.

    earlier: the final folder that this one replaces. A card in it that somebody has changed is taken over,
    and the new one is written beside it; then return a line for the user. Raises OSError.
    """
    names = (CARD_NAME, NEW_CARD_NAME)
    kept = [name for name in names if earlier is not None and is_filled_in(earlier / name)]
    for name in kept:
        shutil.copy2(earlier / name, folder / name)
    free = [name for name in names if name not in kept][:1]  # none: both stay, and they are cards already
    for name in free:
        text = card_text(description, state)
        text += DIGEST_LINE.format(digest_of(text))
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    if not kept:
        return None
    stays = f"{' and '.join(kept)} of {earlier} changed since training wrote it, and stays as it is"
    return f"{stays}; the new card is {free[0]}" if free else f"{stays}; no new card is written"


def is_filled_in(path: Path) -> bool:
    """Return whether there is a card, and it is not as training wrote it."""
    if not path.is_file():
        return False
    text, line, rest = path.read_text(encoding="utf-8", errors="replace").rpartition(DIGEST_LINE[:4])
    return line + rest != DIGEST_LINE.format(digest_of(text))


def digest_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def card_text(description: ModelDescription, state: TrainerState) -> str:
    """Return the card with its header."""
    starts = {part: name for part, name in description.starts.items() if name is not None}
    header = ModelCardData(
        license="unknown", library_name="diffusers", pipeline_tag=description.pipeline_tag,
        base_model=[*description.bases] or None, tags=[*description.tags],
    )  # fmt: skip
    steps = {"steps": str(state.step), "clips per step": str(state.clips_per_step)}
    steps |= {"steps skipped, their loss not finite": str(state.steps_skipped)} if state.steps_skipped else {}
    text = CARD.format(
        title=description.title, summary=paragraph(description.summary),
        command=" ".join(description.command),
        inputs=paragraph(description.inputs), data=table(description.data), to_fill_in=TO_FILL_IN,
        settings=table(steps | {f"`{name}`": value for name, value in description.settings.items()}),
        curves=table(curve_rows(state.last_values)),
        starts=start_lines(starts),
    )  # fmt: skip
    return str(ModelCard(f"---\n{header.to_yaml()}\n---\n\n{text}"))


def start_lines(starts: Mapping[str, str]) -> str:
    """Return the entries on weights of others."""
    if not starts:
        return "- It started from random weights: there are no licences of others' weights."
    first = f"- Licences of what it started from: {TO_FILL_IN}. They go on to what is trained from them."
    return "\n".join([first, *(f"  - {part}: `{public_name(name)}`" for part, name in starts.items())])


def curve_rows(values: Mapping[str, float]) -> dict[str, str]:
    """Return {curve: its last value}, losses first; strengths of features tell nothing by themselves."""
    names = sorted(values, key=lambda name: (name != "train_loss", name != "val_loss"))
    return {f"`{name}`": f"{values[name]:.4g}" for name in names if not name.startswith("guidance_norm")}


def paragraph(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def table(rows: Mapping[str, str]) -> str:
    """Return rows as a table of Markdown, without a header."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def is_hub_id(name: str) -> bool:
    return HUB_ID.fullmatch(name) is not None and not Path(name).exists()


def public_name(name: str) -> str:
    """Return a hub id as it is, and of a path, MODULE:NAME with a path too, the last name."""
    if is_hub_id(name):
        return name
    return PureWindowsPath(name).name or Path(name).resolve().name


def listed(names: Sequence[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def data_rows(sets: SampleSets, report: DataReport | None) -> dict[str, str]:
    """Return how much a run trained on, and what it was validated on."""
    ids = [sets.train_set.sample_ids[index] for index in sets.train_indices]
    facts = report.samples if report is not None else {}
    lengths = [seconds_of(facts.get(sample_id, {})) for sample_id in ids]
    minutes = f", {sum(lengths) / 60:.1f} minutes" if all(lengths) else ""
    held_out = counted(len(sets.validation_indices), sets.unit)
    if sets.validation_set is not sets.train_set:
        held_out += " of a folder of its own"
    elif set(sets.validation_indices) & set(sets.train_indices):
        held_out = f"the same {sets.unit}s: the values below say nothing of new ones"
    else:
        held_out += ", held out of training"
    return {"training": f"{counted(len(ids), sets.unit)}{minutes}", "validation": held_out}


def counted(count: int, unit: str) -> str:
    return f"{count} {unit}{'s' * (count != 1)}"


def seconds_of(facts: Mapping) -> float:
    """Return the length of a sample, of its facts in the data report; 0 where they do not tell it."""
    rate = facts.get("frame_rate")
    return facts["seconds"] + 1 / rate if rate and "seconds" in facts else 0.0


def guidance_rows(channels: Mapping[str, int], recipes: Mapping[str, str | None]) -> dict[str, str]:
    """Return what each guidance type is, and by which recipe it was made, where that is known."""
    units = {"music": "features per frame", "pose": "key points"}
    made = {name: f", made by `{public_name(recipe)}`" for name, recipe in recipes.items() if recipe}
    return {
        f"guidance: {name}": f"{count} {units.get(name, 'channels')}{made.get(name, '')}"
        for name, count in channels.items()
    }


def setting_rows(settings: RunSettings, always: Sequence[str], others: Iterable[str]) -> dict[str, str]:
    """Return {setting: value} of those that are always shown, and of others that are not as by default."""
    offered, kind = settings.offered(), type(settings)
    changed = [name for name in others if name in offered and offered[name] != default_of(name, kind)]
    return {name: shown(offered[name]) for name in dict.fromkeys([*always, *changed])}


def names_of(*groups: type) -> list[str]:
    """Return the settings of groups that say something of the result."""
    return [entry.name for group in groups for entry in fields(group) if entry.name not in TOLD_OTHERWISE]
