"""The model card: what a reader finds in it, which commands work, and what must not be in it."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

import sample_guidance
import sample_music_to_pose
from datasets import DataReport
from sampling.guidance import guidance_sources
from training.checkpoints.saving import TrainerState
from training.music_to_pose import card as dances
from training.music_to_pose.settings import MusicToPoseArguments
from training.publishing.card import data_rows, is_hub_id, public_name, write_card
from training.publishing.champ import describe
from training.settings.fields import TrainingArguments

FACTS = {"seconds": 29.5, "frame_rate": 2.0}  # half a minute
CHAMP = {
    "guidance_types": ["music", "pose", "depth"], "guidance_input_channels": [35, 134, 3],
    "resolution": [512, 384], "seed": 7, "noise_offset": 0.1, "train_data_dir": "/home/me/secret",
    "vae_model_name_or_path": "/home/me/vae/", "guidance_modules": ["/home/me/own_types.py"],
    "loss": "/home/me/own_loss.py:loss",
}  # fmt: skip


def sets(unit="video", **changes):
    ids = [f"dance_{number}" for number in range(4)]
    samples = SimpleNamespace(sample_ids=ids)
    found = {
        "train_set": samples, "validation_set": samples, "train_indices": [0, 1, 2],
        "validation_indices": [3], "unit": unit, "frame_rate": 25.0, "music_recipe": "aist35",
        "pose_recipe": "/home/me/own_poses.py:find",
        "clip_keywords": {"sequence_length": 16, "frame_stride": 2},
    }  # fmt: skip
    return SimpleNamespace(**found | changes)


@pytest.fixture
def card(tmp_path):
    """card(description): what is written of it, parsed."""

    def write(description):
        state = TrainerState(
            step=500, clips_per_step=8, last_values={"train_loss": 0.123456, "val_loss": 2.0}
        )
        write_card(tmp_path, description, state)
        return ModelCard.load(tmp_path / "README.md")

    return write


def command_of(card) -> list[str]:
    return shlex.split(card.text.split("```bash\n")[1].split("```")[0])


def rows_of(card) -> list[str]:
    return [line for line in card.text.splitlines() if line.startswith("| ")]


def test_of_a_video_model(card, tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), **CHAMP)
    DataReport("", samples={f"dance_{number}": FACTS for number in range(4)}).write(
        tmp_path / "out" / "data_report.json"
    )
    found = card(describe(arguments, sets()))
    header = found.data.to_dict()
    assert header["license"] == "unknown" and header["library_name"] == "diffusers"
    assert header["base_model"] == ["stable-diffusion-v1-5/stable-diffusion-v1-5"]
    assert header["pipeline_tag"] == "image-to-video" and "pose-guidance" in header["tags"]
    assert {
        "| training | 3 videos, 1.5 minutes |", "| validation | 1 video, held out of training |",
        "| guidance: music | 35 features per frame, made by `aist35` |",
        "| guidance: pose | 134 key points, made by `own_poses.py:find` |",
        "| guidance: depth | 3 channels |", "| steps | 500 |", "| clips per step | 8 |", "| `seed` | 7 |",
        "| `noise_offset` | 0.1 |", "| `loss` | with own_loss.py:loss |", "| `train_loss` | 0.1235 |",
        "| `val_loss` | 2 |",
        "| frames | 512 x 384 pixels (height x width), `--fit auto`; 16 per clip, 12.5 per second "
        "(`--frame_stride 2`) |",
    } <= set(rows_of(found))  # fmt: skip
    assert "  - VAE: `vae`\n" in found.text and "/home" not in found.text and "{" not in found.text

    program, words = command_of(found)[1], command_of(found)[2:]
    parsed = sample_guidance.parse_arguments(words)
    assert program == "sample_guidance.py" and parsed.guidance_modules == ["own_types.py"]
    assert set(guidance_sources(parsed)[0]) == {"music", "pose", "depth"}


def test_of_single_frames_without_music(card, tmp_path):
    arguments = TrainingArguments(
        output_dir=str(tmp_path), training_stage="image", guidance_types=["pose"],
        guidance_input_channels=[18], pretrained_model_name_or_path=str(tmp_path),
        motion_module_path="mm.ckpt",
    )  # fmt: skip
    keywords = {"sequence_length": 1, "frame_stride": 1}
    found = card(describe(arguments, sets(clip_keywords=keywords, pose_recipe=None)))
    assert "base_model" not in found.data.to_dict() and "mm.ckpt" not in found.text
    assert "--song" not in found.text and "single frames |" in found.text
    assert "| guidance: pose | 18 key points |" in rows_of(found)
    assert str(tmp_path) not in found.text and f"`{tmp_path.name}`" in found.text


def test_of_a_model_of_dances(card, tmp_path):
    arguments = MusicToPoseArguments(output_dir=str(tmp_path), time_stretch=0.2)
    found = card(dances.describe(arguments, sets("dance", pose_recipe="dwpose")))
    assert {"| `time_stretch` | 0.2 |", "| guidance: pose | 134 key points, made by `dwpose` |"} <= set(
        rows_of(found)
    )
    assert "started from random weights" in found.text
    program, words = command_of(found)[1], command_of(found)[2:]
    assert program == "sample_music_to_pose.py" and sample_music_to_pose.parse_arguments(words).music


def test_what_it_is_validated_on():
    elsewhere = SimpleNamespace(sample_ids=["other"])
    cases = {
        "1 video of a folder of its own": {"validation_set": elsewhere, "validation_indices": [0]},
        "the same videos: the values below say nothing of new ones": {"validation_indices": [0, 1, 2]},
    }
    for said, changes in cases.items():
        found = data_rows(sets(**changes), None)  # without a report no minutes
        assert found == {"training": "3 videos", "validation": said}


def test_names_without_their_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bases/sd15").mkdir(parents=True)
    assert is_hub_id("openai/clip") and not is_hub_id("bases/sd15") and not is_hub_id("a/b/c")
    names = ["openai/clip", "bases/sd15", "/x/y.safetensors", "C:\\x\\y.ckpt", "aist35", "my/own.py:f", "."]
    found = [public_name(name) for name in names]
    assert found == ["openai/clip", "sd15", "y.safetensors", "y.ckpt", "aist35", "own.py:f", tmp_path.name]


def test_a_card_that_somebody_has_filled_in_stays(tmp_path):
    description = dances.describe(MusicToPoseArguments(output_dir=str(tmp_path)), sets("dance"))
    earlier, written = tmp_path, []
    for turn, filled_in in enumerate([None, "README.md", "README_new.md", None]):
        folder = tmp_path / f"final-{turn}"
        folder.mkdir()
        said = write_card(folder, description, TrainerState(step=turn, clips_per_step=1), earlier)
        written.append((said, {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}))
        if filled_in is not None:
            with (folder / filled_in).open("a", encoding="utf-8", newline="\r\n") as file:
                file.write("Everybody has agreed.\n")
        earlier = folder
    first, second, third, fourth = written
    assert first[0] is None and list(first[1]) == ["README.md"]  # there was none
    assert second[0] is None and "| steps | 1 |" in second[1]["README.md"]  # the first was as written
    assert "README.md of" in third[0] and "the new card is README_new.md" in third[0]
    assert third[1]["README.md"].endswith("Everybody has agreed.\n")
    assert "| steps | 1 |" in third[1]["README.md"] and "| steps | 2 |" in third[1]["README_new.md"]
    assert "no new card is written" in fourth[0] and fourth[1]["README_new.md"].endswith("agreed.\n")
