"""The trainer end to end, on a tiny base and tiny data: what it writes, resumes and learns."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datasets import DataError, GuidanceDataset, VideoReader
from models import ChampModel
from pipelines.champ_pipeline import ChampPipeline
from tests.training.runs import (
    assert_same_bits,
    final_weights,
    run,
    scalars,
    stop_after,
    train_in_two_processes,
)
from training.checkpoints.saving import read_state
from training.run_log import CHARTS
from training.settings.parsing import parse_arguments

REPOSITORY = Path(__file__).parents[1]


def test_a_run_writes_what_is_promised(flags, tmp_path, capsys):
    out = tmp_path / "out"
    more = (
        "--max_train_steps",
        3,
        "--validation_steps",
        2,
        "--num_validation_clips",
        2,
        "--save_steps",
        1,
        "--checkpoints_total_limit",
        2,
        "--use_ema",
        "--gradient_accumulation_steps",
        2,
        "--scale_lr",
        "--guidance_scale",
        2.0,
        "--num_inference_steps",
        2,
        "--validation_metrics",
        "psnr",
        "dtssd",
        "--keep_best",
        "ssim",
    )
    assert run(flags, *more) == 0

    saved = sorted(path.name for path in out.glob("checkpoint-*"))
    assert saved == ["checkpoint-2", "checkpoint-3", "checkpoint-best"]
    for name in (
        "config.yaml",
        "data_report.json",
        "final/model_index.json",
        "final/scheduler/scheduler_config.json",
    ):
        assert (out / name).is_file(), name
    assert not list(out.glob("*.tmp"))
    again = parse_arguments(["--config", str(out / "config.yaml")])
    assert again == parse_arguments([*flags, *map(str, more)])
    assert "# git commit: " in (out / "config.yaml").read_text()

    for step in (2, 3):
        video = VideoReader(next((out / "samples" / f"step-{step:06d}").glob("*.mp4")))
        assert len(video) == 4 and video.size[1] > 5 * 64  # reference, music, pose, truth, prediction

    events = EventAccumulator(str(tmp_path / "logs" / "out"), size_guidance={"images": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        "train_loss",
        "lr",
        "epoch",
        "step",
        "grad_norm",
        "grad_norm/denoising_unet",
        "grad_norm/motion_modules",
        "grad_norm/reference_unet",
        "grad_norm/guidance_encoders",
        "samples_per_second",
        "data_wait",
        "peak_memory_gb",
        "val_loss",
        "val_loss/t000-249",
        "val_loss/t750-999",
        "guidance_gap/music",
        "guidance_gap/pose",
        "guidance_gap/reference",
        "guidance_gap_alone/music",
        "guidance_gap_alone/pose",
        "guidance_norm/music",
        "guidance_norm/pose",
        "psnr",
        "dtssd",
        "ssim",
    }
    values = [event.value for event in events.Scalars("ssim")]
    best = read_state(out / "checkpoint-best")
    assert best.best["ssim"] == pytest.approx(max(values)) and best.step == 2 + np.argmax(values)
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("lr")] == pytest.approx([2e-4] * 3)  # x 2 by --scale_lr
    assert events.Scalars("epoch")[-1].value == pytest.approx(6 / 3)
    images = events.Images("validation/panel")
    assert [image.step for image in images] == [2, 3]
    assert images[0].encoded_image_string.startswith(b"GIF89a")
    assert len(events.Images("train/first_batch")) == 1 and (out / "samples" / "first_batch.gif").is_file()
    assert "configuration/text_summary" in events.Tags()["tensors"]

    # The averaged weights are the exported ones; a pipeline reads them, and a model.
    model = ChampModel.from_pretrained(out / "final")
    averages = load_file(out / "checkpoint-3" / "ema.safetensors")
    trained = [
        parameter for name, parameter in model.named_parameters() if name not in model.untrainable_names
    ]
    assert len(trained) == len(averages)
    assert all(torch.equal(parameter, averages[str(place)]) for place, parameter in enumerate(trained))
    assert (model.guidance_encoders.encoders["music"].feature_std != 1).any()
    pipeline = ChampPipeline.from_pretrained(out / "final")
    assert (pipeline.config.height, pipeline.config.sequence_length, pipeline.config.frame_rate) == (
        64,
        4,
        8.0,
    )
    console = capsys.readouterr().err
    assert "validation uses training clips: 3 video(s)" in console
    assert re.search(r"step 2: val_loss \S+, psnr \S+, dtssd \S+, ssim \S+, gap/", console)


def test_a_stopped_run_resumes_to_the_same_bits(flags, tmp_path, monkeypatch, capsys):
    more = (
        "--max_train_steps",
        4,
        "--checkpointing_steps",
        4,
        "--use_ema",
        "--gradient_accumulation_steps",
        2,
        "--lr_scheduler",
        "cosine",
        "--train_batch_size",
        2,
        "--resume_from_checkpoint",
        "latest",
    )
    assert run(flags, *more) == 0  # with nothing to resume it starts
    whole = final_weights(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")

    stop_after(1, monkeypatch)
    assert run(flags, *more) == 143
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-2"]
    assert not (tmp_path / "out" / "final").exists()
    capsys.readouterr()
    assert run(flags, *more, "--num_validation_clips", 2) == 0
    console = capsys.readouterr().err
    assert "checkpoint-2, step 2" in console
    assert "num_validation_clips was 1, now it is 2" in console
    assert_same_bits(final_weights(tmp_path / "out"), whole)
    # Steps 1 and 2 of both earlier runs, 3 and 4 of the last: what lies beyond the checkpoint is hidden.
    assert len(scalars(tmp_path / "logs", "train_loss")) == 2 + 2 + 2

    # Once more: there is nothing left to do. With more steps it goes on.
    card_path = tmp_path / "out/final/README.md"
    card = card_path.read_text(encoding="utf-8")
    assert "`val_loss` | 0." in card and str(tmp_path) not in card
    assert run(flags, *more) == 0
    assert card_path.read_text(encoding="utf-8") == card
    assert "trained to step 4 of 4 already; more --max_train_steps go on" in capsys.readouterr().err
    assert_same_bits(final_weights(tmp_path / "out"), whole)
    card_path.write_text(card.replace("**to fill in**", "MIT"), encoding="utf-8")
    assert run(flags, *more, "--max_train_steps", 5) == 0
    console = capsys.readouterr().err
    assert "step 5: val_loss" in console and "the new card is README_new.md" in console
    assert card_path.read_text(encoding="utf-8") == card.replace("**to fill in**", "MIT")

    assert run(flags, *more, "--guidance_embedding_channels", 64) == 2
    assert "trained with guidance_embedding_channels = 32, now it is 64" in capsys.readouterr().err


def test_a_signal_to_the_whole_group_saves_too(flags, tmp_path):
    # As torchrun, Slurm and containers send it: the data worker gets it as well, and must go on.
    out = tmp_path / "out"
    more = ["--num_workers", "1", "--max_train_steps", "500", "--checkpointing_steps", "3"]
    console = tmp_path / "console.txt"
    with console.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "train_guidance.py", *flags, *more, "--checkpoints_total_limit", "1"],
            cwd=REPOSITORY, stderr=stderr, start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None and not list(out.glob("checkpoint-*[0-9]")):
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGTERM)
            assert process.wait(timeout=60) == 143, console.read_text()
        finally:
            process.kill()
    assert "stopped; the same command" in console.read_text()


def test_resumed_with_other_settings_they_count(flags, tmp_path):
    assert run(flags, "--max_train_steps", 1, "--checkpointing_steps", 1) == 0
    before = final_weights(tmp_path / "out")
    more = ("--gradient_accumulation_steps", 2, "--adam_weight_decay", 0.5, "--checkpointing_steps", 1)
    assert run(flags, *more, "--resume_from_checkpoint", "latest", "--max_train_steps", 2) == 0
    after = final_weights(tmp_path / "out")
    optimizer = torch.load(tmp_path / "out" / "checkpoint-2" / "optimizer.bin", weights_only=True)
    assert {group["weight_decay"] for group in optimizer["param_groups"]} == {0.5}
    assert not torch.equal(after["unet.conv_in.weight"], before["unet.conv_in.weight"])


def test_accumulation_is_a_larger_batch(flags, tmp_path, tiny_kl):
    flags = [*flags, "--vae_model_name_or_path", str(tiny_kl)]  # one that samples
    losses, weights = [], []
    for name, batch_size, accumulation in (("large", 4, 1), ("small", 1, 4)):
        out = tmp_path / name
        size = ("--train_batch_size", batch_size, "--gradient_accumulation_steps", accumulation)
        assert run(flags, "--output_dir", out, "--logging_dir", tmp_path / f"logs_{name}", *size) == 0
        losses.append(scalars(tmp_path / f"logs_{name}", "train_loss"))
        weights.append(final_weights(out))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    difference = max((weights[0][key] - weights[1][key]).abs().max().item() for key in weights[0])
    assert difference < 2e-5  # Adam's first steps are of 1e-4 whatever the gradient: rounding counts there


def test_image_stage_then_motion_stage(flags, tmp_path):
    stage1, stage2 = tmp_path / "stage1", tmp_path / "stage2"
    assert run(flags, "--training_stage", "image", "--output_dir", stage1, "--train_batch_size", 2) == 0
    assert next((stage1 / "samples" / "step-000002").iterdir()).suffix == ".png"
    motion = (
        "--training_stage",
        "motion",
        "--champ_checkpoint_dir",
        stage1 / "final",
        "--output_dir",
        stage2,
    )
    assert run(flags, *motion, "--learning_rate", 1e-3) == 0
    before, after = final_weights(stage1), final_weights(stage2)
    assert_same_bits({key: after[key] for key in before}, before)
    added = {key: value for key, value in after.items() if key not in before}
    assert all(".motion_modules." in key for key in added)
    assert any("proj_out.weight" in key and value.any() for key, value in added.items())


def test_it_learns_one_clip(flags, tmp_path, write_data):
    # A video of 4 frames is one clip of 4. Its loss at fixed noise must fall, not only the running one.
    one = write_data(tmp_path / "one", num_videos=1, num_frames=4)
    more = [
        "--train_data_dir",
        one,
        "--learning_rate",
        2e-3,
        "--pretrained_lr_scale",
        1.0,
        "--validation_steps",
        12,
    ]
    more += ["--guidance_dropout", 0, "--reference_dropout", 0, "--train_batch_size", 2]
    assert run(flags, *more, "--max_train_steps", 1, "--learning_rate", 1e-9) == 0
    assert run(flags, *more, "--max_train_steps", 24) == 0
    untrained, halfway, trained = scalars(tmp_path / "logs", "val_loss")
    assert trained < 0.5 * untrained, (untrained, halfway, trained)
    assert trained < halfway


def test_every_chart_has_its_numbers(flags, tmp_path):
    assert run(flags, "--max_train_steps", 1, "--num_validation_clips", 2) == 0
    events = EventAccumulator(str(next((tmp_path / "logs").glob("*/"))))
    events.Reload()
    logged = events.Tags()["scalars"]
    for charts in CHARTS.values():
        for title, (_, patterns) in charts.items():
            assert all(any(re.search(pattern, tag) for tag in logged) for pattern in patterns), title
    assert any("custom_scalars" in tag for tag in events.Tags()["tensors"])


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "true"}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no forks")
@pytest.mark.parametrize("environment", [{}, FSDP], ids=["whole", "sharded"])
def test_two_processes_are_one_with_twice_the_batch(flags, tmp_path, tiny_kl, environment):
    flags = [*flags, "--vae_model_name_or_path", str(tiny_kl)]  # one that samples
    more = ["--reference_dropout", "0.5", "--guidance_dropout", "0.5", "--use_ema", "--ema_decay", "0.5"]
    two = [*flags, *more, "--output_dir", str(tmp_path / "two"), "--logging_dir", str(tmp_path / "logs_two")]
    two += ["--keep_best", "val_loss"]
    console = tmp_path / "console.txt"
    for num_steps in ("2", "3"):  # the second goes on where the first ended
        steps = ["--max_train_steps", num_steps, "--save_steps", "2"]
        assert train_in_two_processes([*two, *steps], console, environment) == 0, console.read_text()[-3000:]
    assert "checkpoint-2, step 2" in console.read_text()
    names = {path.name for path in (tmp_path / "two" / "checkpoint-2").iterdir()}
    assert {"model.safetensors", "random_states_0.pkl", "random_states_1.pkl"} <= names
    losses = scalars(tmp_path / "logs_two", "val_loss")
    assert read_state(tmp_path / "two" / "checkpoint-best").best == {"val_loss": pytest.approx(min(losses))}
    assert run(flags, *more, "--max_train_steps", 3, "--train_batch_size", 2) == 0
    assert scalars(tmp_path / "logs_two", "train_loss") == pytest.approx(
        scalars(tmp_path / "logs", "train_loss"), rel=1e-4
    )
    one, two = final_weights(tmp_path / "out"), final_weights(tmp_path / "two")
    assert max((one[key] - two[key]).abs().max().item() for key in one) < 5e-5


def test_what_cannot_be_written_is_told(flags, tmp_path, monkeypatch, capsys):
    (tmp_path / "a_file").write_text("")
    assert run(flags, "--output_dir", tmp_path / "a_file" / "out") == 2
    assert "a_file/out: cannot be written: Not a directory" in capsys.readouterr().err

    # A picture and a log that cannot be written are no reason to end a training; a final model is.
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("training.validation.validator.write_video", full)
    assert run(flags, "--logging_dir", tmp_path / "a_file") == 0
    console = capsys.readouterr().err
    assert "no image in " in console and "No space left" in console
    assert console.count("warning: the log in") == 1
    before = final_weights(tmp_path / "out")
    monkeypatch.setattr(ChampPipeline, "save_pretrained", full)
    assert run(flags, "--max_train_steps", 3) == 1
    assert "out/final is not saved: the disk is full" in (console := capsys.readouterr().err)
    assert "latest goes on from checkpoint-3" in console and "Traceback" not in console
    assert_same_bits(final_weights(tmp_path / "out"), before)  # of the earlier run


def test_precision_checkpointing_and_image_format_run(flags, tmp_path):
    more = (
        "--mixed_precision",
        "bf16",
        "--gradient_checkpointing",
        "--allow_tf32",
        "--train_data_format",
        "image",
        "--prediction_type",
        "epsilon",
        "--snr_gamma",
        "none",
        "--no-set_grads_to_none",
        "--num_workers",
        1,
        "--max_train_steps",
        "none",
        "--num_train_epochs",
        1,
    )
    assert run(flags, *more) == 0
    assert scalars(tmp_path / "logs", "step") == [1, 2, 3]  # three videos, one epoch
    assert all(np.isfinite(scalars(tmp_path / "logs", "train_loss")))


def test_gradient_checkpointing_changes_nothing(flags, tmp_path):
    for name, flag in (
        ("plain", "--no-gradient_checkpointing"),
        ("selective", "--gradient_checkpointing=selective"),
        ("checkpointed", "--gradient_checkpointing"),
    ):
        assert run(flags, flag, "--output_dir", tmp_path / name, "--max_train_steps", 1) == 0
    plain = final_weights(tmp_path / "plain")
    for name in ("selective", "checkpointed"):
        found = final_weights(tmp_path / name)
        assert max((plain[key] - found[key]).abs().max().item() for key in plain) < 1e-6


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_vanishes_is_one_message(flags, num_workers, monkeypatch, capsys):
    def vanished(dataset, index):
        raise DataError("data/poses/dance_001", "is gone", "bring it back")

    monkeypatch.setattr(GuidanceDataset, "__getitem__", vanished)
    assert run(flags, "--num_workers", num_workers) == 2
    console = capsys.readouterr().err
    assert "data/poses/dance_001: is gone; bring it back" in console
    assert "Traceback" not in console
