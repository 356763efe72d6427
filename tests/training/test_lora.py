"""LoRA in a run: what trains, resume to the bit, what final/ and checkpoints hold, what is refused."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

import sample_guidance
from models import ChampModel, create_guidance_encoders
from models.lora import load_lora, lora_state, merge_lora
from tests.training.runs import assert_same_bits, run, scalars, stop_after, train_in_two_processes
from training.checkpoints.pipeline import pipeline_of_checkpoint
from training.settings.checks import settings_without_effect
from training.settings.fields import TrainingArguments

LORA = ("--lora_rank", 2, "--lora_dropout", 0.2, "--learning_rate", 1e-2)
FILE = "final/pytorch_lora_weights.safetensors"
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}
OUTER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def base_dir(tiny_base, tmp_path_factory):
    """A final/ with trained motion modules and encoders: nothing in it is zero."""
    folder = tmp_path_factory.mktemp("base") / "final"
    torch.manual_seed(0)
    encoders = create_guidance_encoders(
        ["music", "pose"], [35, 134], 32, block_out_channels=(8, 16, 32, 32), num_attention_heads=2
    )
    model = ChampModel.from_pretrained_sd(tiny_base, encoders)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def lora_flags(flags, base_dir):
    return [*flags, "--champ_checkpoint_dir", str(base_dir), *map(str, LORA)]


def test_a_stopped_run_goes_on_to_the_same_bits(lora_flags, tmp_path, monkeypatch):
    """With dropout in the adapters and averaged weights; checkpoints hold no copy of the base."""
    often = ("--max_train_steps", 3, "--use_ema", "--ema_decay", 0.5, "--checkpointing_steps", 2)
    assert run(lora_flags, *often) == 0
    whole = load_file(tmp_path / "out" / FILE)
    parts = [*lora_flags, "--output_dir", str(tmp_path / "parts"), "--resume_from_checkpoint", "latest"]
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        assert run(parts, *often, "--checkpointing_steps", 9) == 143
    assert run(parts, *often) == 0
    assert_same_bits(load_file(tmp_path / "parts" / FILE), whole)
    assert any(value.any() for key, value in whole.items() if ".lora_B." in key)
    kept = load_file(tmp_path / "out" / "checkpoint-2" / "model.safetensors")
    assert f"{OUTER}.lora_A.default.weight" in kept and not any(".base_layer." in name for name in kept)
    norms = ("grad_norm/denoising_unet", "grad_norm/motion_modules", "grad_norm/reference_unet")
    assert all(len(scalars(tmp_path / "logs", name)) == 3 for name in norms)


@pytest.fixture(scope="module")
def finished(tiny_base, tiny_data, base_dir, tmp_path_factory):
    """A run with a checkpoint at its end: (its flags, its folder)."""
    folder = tmp_path_factory.mktemp("run") / "out"
    flags = {
        "pretrained_model_name_or_path": tiny_base, "train_data_dir": tiny_data, "output_dir": folder,
        "logging_dir": folder / "logs", "guidance_types": "music pose", "guidance_input_channels": "35 134",
        "guidance_embedding_channels": 32, "guidance_block_out_channels": "8 16 32 32", "resolution": 64,
        "sequence_length": 4, "num_workers": 0, "max_train_steps": 1, "lr_warmup_steps": 0,
        "checkpointing_steps": 1, "validation_steps": 9, "num_validation_clips": 1,
        "num_inference_steps": 1, "champ_checkpoint_dir": base_dir, "learning_rate": 1e-2, "lora_rank": 2,
        "lora_parts": "unet guidance_encoders",
    }  # fmt: skip
    argv = [word for name, value in flags.items() for word in (f"--{name}", *str(value).split())]
    assert run(argv) == 0
    return argv, folder


def test_final_holds_adapters_and_the_encoders_that_were_named(finished, base_dir):
    final = finished[1] / "final"
    assert sorted(path.name for path in final.iterdir()) == [
        "README.md", "guidance_encoders", "pytorch_lora_weights.safetensors"
    ]  # fmt: skip
    assert all(key.startswith("unet.") and ".motion" not in key for key in load_file(finished[1] / FILE))
    card = (final / "README.md").read_text(encoding="utf-8")
    assert "--model_path BASE --lora FOLDER" in card and "| `lora_rank` | 2 |" in card
    assert "- lora" in card.split("---")[1]


def test_a_checkpoint_is_the_model_that_final_makes_of_the_base(finished, base_dir):
    model = ChampModel.from_pretrained(base_dir)
    load_lora(model, finished[1] / "final")
    found = pipeline_of_checkpoint(finished[1] / "checkpoint-1").model
    assert_same_bits(lora_state(found), lora_state(model))
    assert_same_bits(found.state_dict(), model.state_dict())


def test_a_checkpoint_is_merged_into_a_model_of_its_own(finished, base_dir, tmp_path, capsys):
    """As a base that is no final/ needs: a folder of CHAMP's .pth files."""
    merged, flags = tmp_path / "merged", ["--model_path", str(finished[1] / "checkpoint-1"), "--merge_lora"]
    assert sample_guidance.main([*flags, str(merged)]) == 0
    model = ChampModel.from_pretrained(base_dir)
    load_lora(model, finished[1] / "final")
    merge_lora(model)
    assert_same_bits(ChampModel.from_pretrained(merged).state_dict(), model.state_dict())
    assert sample_guidance.main([*flags, str(tmp_path / "other"), "--lora", str(finished[1] / "final")]) == 2
    assert "checkpoint-1 is a checkpoint; leave it out, or give a final/" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--lora_rank", 3), "trained with lora_rank = 2, now it is 3"),
        (("--lora_alpha", 8), "trained with lora_alpha = None, now it is 8"),
        (("--lora_parts", "unet"), "trained with lora_parts = "),
        (("--lora_rank", "none"), "trained with lora_rank = 2, now it is None"),
    ],
)
def test_other_adapters_cannot_go_on(finished, capsys, changes, message):
    assert run(finished[0], "--resume_from_checkpoint", "latest", *changes) == 2
    assert message in capsys.readouterr().err


def test_another_base_cannot_go_on_nor_be_sampled(finished, base_dir, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(base_dir, other)
    model = ChampModel.from_pretrained(other)
    with torch.no_grad():
        model.reference_unet.conv_in.weight[0] += 1
    model.save_pretrained(other)
    changes = ("--resume_from_checkpoint", "latest", "--champ_checkpoint_dir", other)
    assert run(finished[0], *changes) == 2
    assert "is of another base: reference_unet (" in capsys.readouterr().err
    checkpoint = tmp_path / "checkpoint-1"
    shutil.copytree(finished[1] / "checkpoint-1", checkpoint)
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    state["settings"]["champ_checkpoint_dir"] = str(other)
    (checkpoint / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(Exception, match="another base: reference_unet .* had other weights then"):
        pipeline_of_checkpoint(checkpoint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--lora_parts", "motion", "--training_stage", "image"), "--training_stage image does not train it"),
        (("--lora_parts", "text"), "no such part: name some of unet, motion, reference_unet"),
        (("--lora_parts", "guidance_encoders"), "nothing has adapters: name unet too"),
        (("--lora_parts", "unet", "unet"), "a part is named twice"),
        (("--lora_rank", 0), "--lora_rank 0: must be at least 1"),
        (("--cache_latents", "--cache_features"), "the joint one with --lora_rank and --lora_parts unet mot"),
        (("--champ_checkpoint_dir", "none"), "LoRA on fresh motion modules"),
        (("--champ_checkpoint_dir", "none", "--training_stage", "image"), "LoRA on an untrained guidance en"),
    ],
)
def test_what_makes_no_sense_is_one_line(lora_flags, capsys, changes, message):
    assert run(lora_flags, *changes) == 2
    assert message in capsys.readouterr().err


def test_adapters_as_a_base_are_told_from_a_model(lora_flags, finished, capsys):
    assert run(lora_flags, "--champ_checkpoint_dir", finished[1] / "final") == 2
    assert "it holds adapters: give their base, or what sample_guidance.py --merge" in capsys.readouterr().err


def test_settings_without_effect_are_told():
    lines = settings_without_effect(TrainingArguments(lora_alpha=8.0, lora_parts=["unet"]))
    assert [line for line in lines if "--lora" in line] == [
        "--lora_alpha has no effect: --lora_rank is not given",
        "--lora_parts has no effect: --lora_rank is not given",
    ]
    adapters = TrainingArguments(lora_rank=4, pretrained_lr_scale=0.5)
    assert "--pretrained_lr_scale has no effect" in " ".join(settings_without_effect(adapters))
    adapters.lora_parts = ["unet", "guidance_encoders"]
    assert "--pretrained_lr_scale" not in " ".join(settings_without_effect(adapters))


def test_caches_and_dry_run_know_adapters(lora_flags, tmp_path, capsys):
    cached = ("--lora_parts", "unet", "motion", "--cache_latents", "--cache_features")
    assert run(lora_flags, *cached, "--dry_run") == 0
    said = capsys.readouterr().out
    assert "memory per process, a training step simulated" in said and "GiB for final/" in said
    assert run(lora_flags, *cached, "--max_train_steps", 1) == 0
    assert not any("reference" in key for key in load_file(tmp_path / "out" / FILE))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no forks")
@pytest.mark.parametrize("environment", [{}, FSDP], ids=["whole", "sharded"])
def test_two_processes_are_one_with_twice_the_batch(lora_flags, base_dir, tmp_path, environment):
    flags = [*lora_flags, "--lora_dropout", "0", "--use_ema", "--ema_decay", "0.5", "--save_steps", "1"]
    two, console = [*flags, "--output_dir", str(tmp_path / "two")], tmp_path / "console.txt"
    for num_steps in ("1", "2") if environment else ("1",):  # the second goes on where the first ended
        steps = ["--max_train_steps", num_steps]
        assert train_in_two_processes([*two, *steps], console, environment) == 0, console.read_text()[-3000:]
    assert run(flags, *steps, "--train_batch_size", 2) == 0
    expected, found = (load_file(tmp_path / name / FILE) for name in ("out", "two"))
    assert max((expected[key] - found[key]).abs().max().item() for key in expected) < 1e-4
    for name in ("out", "two"):  # the whole weights are what it sits on
        load_lora(ChampModel.from_pretrained(base_dir), tmp_path / name / "final")
