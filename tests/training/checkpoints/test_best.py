"""checkpoint-best: what is better, and which one a run takes up, sets aside or never mistakes for another."""

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from system.whole_files import tidy
from training.checkpoints.best import BestCheckpoint, make_best, take_up
from training.checkpoints.folders import BEST_NAME, SAVED_NAMES, STATE_FILE, list_checkpoints
from training.checkpoints.pipeline import is_checkpoint
from training.checkpoints.resuming import find_checkpoint, find_start
from training.checkpoints.saving import TrainerState, read_state, save_checkpoint
from training.settings.fields import TrainingArguments

START = TrainerState(step=4)


@pytest.fixture
def settings(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path), keep_best="psnr", resume_from_checkpoint="latest")


@pytest.fixture
def folder(tmp_path, settings):
    """Checkpoints of steps 2 and 4, and checkpoint-best of step 3."""
    accelerator, model = Accelerator(cpu=True), nn.Linear(1, 1)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    known = {"settings": dataclasses.asdict(settings)}
    for step, best in ((2, {}), (3, {"psnr": 21.0625}), (4, {})):
        save_checkpoint(accelerator, tmp_path, TrainerState(step=step, best=best, **known), None, limit=2)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("higher_is_better", "better"), [(True, 3.0), (False, 1.0)])
def test_what_is_better(higher_is_better, better):
    best = BestCheckpoint("metric", higher_is_better)
    assert best.is_better(2.0) and not best.is_better(float("nan")) and not best.is_better(float("inf"))
    best.value = 2.0
    assert best.is_better(better) and not best.is_better(4.0 - better) and not best.is_better(2.0)


def test_the_direction_is_the_metrics_own(settings):
    assert make_best(settings).higher_is_better
    assert not make_best(dataclasses.replace(settings, keep_best="val_loss")).higher_is_better
    assert make_best(dataclasses.replace(settings, keep_best=None)) is None


def test_it_is_neither_the_latest_nor_counted(folder):
    assert names(folder) == ["checkpoint-2", "checkpoint-4", BEST_NAME]  # with limit 2
    assert [path.name for path in list_checkpoints(folder)] == ["checkpoint-2", "checkpoint-4"]
    assert find_checkpoint("latest", folder).name == "checkpoint-4"
    assert find_checkpoint(BEST_NAME, folder) == folder / BEST_NAME
    assert read_state(folder / BEST_NAME).step == 3 and is_checkpoint(folder / BEST_NAME)


def test_what_goes_on_from_the_best_is_an_ordinary_run(folder, settings):
    from_best = dataclasses.replace(settings, resume_from_checkpoint=BEST_NAME)
    start, state, _ = find_start(Accelerator(cpu=True), from_best, 0, {})
    assert (start.name, state.step, state.best) == (BEST_NAME, 3, {})


def test_a_save_that_was_killed_leaves_the_best_before(folder):
    (folder / BEST_NAME).rename(folder / f"{BEST_NAME}.replaced")  # killed between the two renames
    (folder / f"{BEST_NAME}.tmp").mkdir()
    assert len(tidy(folder, SAVED_NAMES)) == 2
    assert names(folder) == ["checkpoint-2", "checkpoint-4", BEST_NAME]


@pytest.mark.parametrize(("step", "beyond"), [(4, False), (2, True)])
def test_a_resumed_run_takes_it_up(folder, settings, step, beyond):
    best = make_best(settings)
    (line,) = take_up(best, settings, folder / f"checkpoint-{step}", TrainerState(step=step))
    assert best.value == 21.0625 and ("further on than this start at step 2" in line) == beyond
    assert BEST_NAME in names(folder)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"keep_best": "val_loss"}, "(the best by psnr, not by val_loss)"),
        ({"num_validation_clips": 9}, "(measured with another num_validation_clips)"),
        ({"center_crop": True}, "(measured with another center_crop)"),  # the clips are cropped otherwise
        ({"guidance_scale": 1.0, "fit": "pad"}, "(measured with another fit, guidance_scale)"),
        ({"resume_from_checkpoint": None}, "of an earlier run"),
        ({"keep_best": None, "resume_from_checkpoint": None}, "of an earlier run"),
    ],
)
def test_what_does_not_compare_is_set_aside(folder, settings, changes, reason):
    settings = dataclasses.replace(settings, **changes)
    best = make_best(settings)
    (line,) = take_up(best, settings, find_checkpoint(settings.resume_from_checkpoint, folder), START)
    assert line == f"{BEST_NAME} {reason} is now {BEST_NAME}.set-aside-1; delete it if it is not needed"
    assert best is None or best.value is None
    assert (folder / f"{BEST_NAME}.set-aside-1" / STATE_FILE).is_file() and BEST_NAME not in names(folder)


def test_the_loss_by_another_vae_is_another_loss(folder, settings):
    path = folder / BEST_NAME / STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"frozen_digests": {"vae": "1"}}))
    best, start = make_best(settings), TrainerState(step=4, frozen_digests={"vae": "1"})
    take_up(best, settings, folder / "checkpoint-4", start)
    assert best.value == 21.0625
    best, start.frozen_digests = make_best(settings), {"vae": "2"}
    (line,) = take_up(best, settings, folder / "checkpoint-4", start)
    assert "(measured with another vae)" in line and best.value is None


def test_another_sampling_changes_no_loss(folder, settings):
    path = folder / BEST_NAME / STATE_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best": {"val_loss": 0.25}}))
    settings = dataclasses.replace(settings, keep_best="val_loss", guidance_scale=1.0, learning_rate=1.0)
    best = make_best(settings)
    take_up(best, settings, folder / "checkpoint-4", START)
    assert best.value == 0.25


def test_a_run_from_another_folder_has_a_best_of_its_own(folder, settings, tmp_path):
    elsewhere = dataclasses.replace(settings, output_dir=str(tmp_path / "elsewhere"))
    best = make_best(elsewhere)
    assert take_up(best, elsewhere, folder / "checkpoint-4", START) == [] and best.value is None
    assert BEST_NAME in names(folder)


def test_a_broken_one_is_set_aside(folder, settings):
    (folder / BEST_NAME / "model.safetensors").write_bytes(b"")
    best = make_best(settings)
    (line,) = take_up(best, settings, folder / "checkpoint-4", START)
    assert "(broken: model.safetensors has 0 bytes" in line and best.value is None


def test_without_the_flag_a_resumed_run_leaves_it(folder, settings):
    settings = dataclasses.replace(settings, keep_best=None)
    assert take_up(None, settings, folder / "checkpoint-4", START) == [] and BEST_NAME in names(folder)
