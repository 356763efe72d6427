"""Checkpoints: whole or absent, the newest whole one is found, old ones go."""

import dataclasses
import errno
import functools
import json
import os
import shutil

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from system.errors import ConfigError, SaveError
from system.whole_files import tidy
from training.checkpoints import saving
from training.checkpoints.folders import SAVED_NAMES, STATE_FILE, list_checkpoints, set_aside_newer
from training.checkpoints.resuming import find_checkpoint, find_start, skipped_as_broken, start_state
from training.checkpoints.saving import (
    EMA_FILE,
    TrainerState,
    load_checkpoint,
    read_state,
    save_checkpoint,
    save_or_say,
    saved_on_failure,
)
from training.optimization import averaged_weights, make_ema
from training.settings.fields import TrainingArguments


def prepared():
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    return accelerator, model, optimizer, make_ema(model, 0.5)


def train_step(model, optimizer, ema):
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    ema.step(model.parameters())


def test_what_is_saved_comes_back(tmp_path):
    accelerator, model, optimizer, ema = prepared()
    train_step(model, optimizer, ema)
    save_checkpoint(accelerator, tmp_path, TrainerState(step=1, samples_seen=4), ema)
    train_step(model, optimizer, ema)
    expected, expected_ema = model.weight.detach().clone(), [tensor.clone() for tensor in ema.shadow_params]

    accelerator, model, optimizer, ema = prepared()
    path = find_checkpoint("latest", tmp_path)
    assert read_state(path).samples_seen == 4
    load_checkpoint(accelerator, path, ema)
    train_step(model, optimizer, ema)
    assert torch.equal(model.weight, expected)
    assert all(torch.equal(one, other) for one, other in zip(ema.shadow_params, expected_ema, strict=True))
    assert set(load_file(path / EMA_FILE)) == {"0", "1"}


def test_several_processes_checkpoint_is_one_processes(tmp_path):
    # Of two processes the model is wrapped; here by a wrapper that needs no second process.
    torch.manual_seed(1)
    wrapped = nn.DataParallel(nn.Linear(3, 3))
    accelerator = Accelerator(cpu=True)
    wrapped, _ = accelerator.prepare(wrapped, torch.optim.AdamW(wrapped.parameters()))
    path = save_checkpoint(accelerator, tmp_path, TrainerState(step=1), None)
    assert set(load_file(path / "model.safetensors")) == {"weight", "bias"}
    expected = wrapped.module.weight.detach().clone()
    accelerator, model, *_ = prepared()
    load_checkpoint(accelerator, path, None)
    assert torch.equal(model.weight, expected)
    model.weight.data.zero_()
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(wrapped, torch.optim.AdamW(wrapped.parameters()))
    wrapped.module.weight.data.zero_()
    load_checkpoint(accelerator, path, None)
    assert torch.equal(wrapped.module.weight, expected)


def test_micro_batches_are_counted_from_the_checkpoint_on(tmp_path):
    accelerator, *_ = prepared()
    accelerator.step = 3
    path = save_checkpoint(accelerator, tmp_path, TrainerState(step=1), None)
    load_checkpoint(accelerator, path, None)
    assert accelerator.step == 0


def test_old_checkpoints_go_after_the_new_one_is_there(tmp_path):
    accelerator, model, optimizer, ema = prepared()
    for step in (1, 2, 10):
        save_checkpoint(accelerator, tmp_path, TrainerState(step=step), None, limit=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-2"]
    save_checkpoint(accelerator, tmp_path, TrainerState(step=10, samples_seen=7), None, limit=2)  # once more
    assert read_state(tmp_path / "checkpoint-10").samples_seen == 7


def test_half_written_checkpoints_are_not_picked(tmp_path):
    accelerator, *_ = prepared()
    for step in (1, 2, 3, 4):
        save_checkpoint(accelerator, tmp_path, TrainerState(step=step), None)
    (tmp_path / "checkpoint-9.tmp").mkdir()
    (tmp_path / "checkpoint-4" / STATE_FILE).unlink()
    weights = tmp_path / "checkpoint-3" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    (tmp_path / "checkpoint-2" / STATE_FILE).write_text("{")
    assert find_checkpoint("latest", tmp_path) == tmp_path / "checkpoint-1"
    with pytest.raises(
        ConfigError, match="checkpoint-4: not a whole checkpoint: trainer_state.json is missing"
    ):
        find_checkpoint("checkpoint-4", tmp_path)


def test_any_file_cut_short_or_missing_is_found(tmp_path):
    accelerator, _, _, ema = prepared()
    whole = save_checkpoint(accelerator, tmp_path, TrainerState(step=1), ema)
    newest = save_checkpoint(accelerator, tmp_path, TrainerState(step=2), ema)
    names = [path.name for path in newest.iterdir()]
    assert {"model.safetensors", "optimizer.bin", "random_states_0.pkl", EMA_FILE, STATE_FILE} <= set(names)
    for name in names:
        content = (newest / name).read_bytes()
        for cut in (content[: len(content) // 2], content[:-1], b""):
            (newest / name).write_bytes(cut)
            assert find_checkpoint("latest", tmp_path) == whole
            (line,) = skipped_as_broken(tmp_path, whole)
            assert name in line and "checkpoint-2 is broken" in line and "going on from checkpoint-1" in line
            with pytest.raises(ConfigError, match=f"checkpoint-2: not a whole checkpoint: {name}"):
                find_checkpoint("checkpoint-2", tmp_path)
        (newest / name).unlink()
        assert f"{name} is missing" in skipped_as_broken(tmp_path, whole)[0]
        (newest / name).write_bytes(content)
    assert find_checkpoint("latest", tmp_path) == newest


def test_a_start_afresh_among_broken_checkpoints_says_so_and_keeps_them(tmp_path):
    accelerator, *_ = prepared()
    path = save_checkpoint(accelerator, tmp_path, TrainerState(step=3), None)
    (path / "optimizer.bin").unlink()
    arguments = TrainingArguments(output_dir=str(tmp_path), resume_from_checkpoint="latest")
    checkpoint, state, lines = find_start(accelerator, arguments, 1, {})
    assert checkpoint is None and state.step == 0
    (line,) = lines
    assert "checkpoint-3 is broken: optimizer.bin is missing; no checkpoint is whole: starting from" in line
    set_aside_newer(tmp_path, 0)
    assert (tmp_path / "checkpoint-3.set-aside-1" / STATE_FILE).exists()


def test_what_a_killed_save_leaves_is_cleared_away(tmp_path):
    accelerator, *_ = prepared()
    kept = save_checkpoint(accelerator, tmp_path, TrainerState(step=1), None)
    (tmp_path / "checkpoint-2.tmp").mkdir()
    (tmp_path / "final").mkdir()
    (tmp_path / "final").rename(tmp_path / "final.replaced")  # killed between the two renames
    (tmp_path / "final.old").mkdir()  # the user's
    lines = tidy(tmp_path, SAVED_NAMES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "final", "final.old"]
    assert len(lines) == 2 and "removed checkpoint-2.tmp" in lines[0] and "final is back" in lines[1]
    assert find_checkpoint("latest", tmp_path) == kept


@pytest.mark.parametrize(("name", "room"), [("model.safetensors", 100), ("optimizer.bin", 700)])
def test_a_disk_that_fills_in_a_save_loses_nothing(tmp_path, monkeypatch, name, room):
    resource = pytest.importorskip("resource")  # not on Windows
    accelerator, _, _, ema = prepared()
    kept = save_checkpoint(accelerator, tmp_path, TrainerState(step=1), ema, limit=1)
    # The kernel's limit on a file's size stands for the disk: writes are cut short in the middle of the file.
    before, save_state = resource.getrlimit(resource.RLIMIT_FSIZE), accelerator.save_state

    def save_in_little_room(folder):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        save_state(folder)

    monkeypatch.setattr(accelerator, "save_state", save_in_little_room)
    try:
        with pytest.raises(SaveError, match="checkpoint-2 is not saved: .*(full|large)"):
            save_checkpoint(accelerator, tmp_path, TrainerState(step=2), ema, limit=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [kept] and list_checkpoints(tmp_path) == [kept]


def test_a_disk_that_fills_at_the_end_of_a_save_loses_nothing(tmp_path, monkeypatch):
    accelerator, *_ = prepared()
    kept = save_checkpoint(accelerator, tmp_path, TrainerState(step=1), None, limit=1)
    monkeypatch.setattr(saving, "file_sizes", _full_disk)
    with pytest.raises(SaveError, match="checkpoint-2 is not saved: the disk is full"):
        save_checkpoint(accelerator, tmp_path, TrainerState(step=2), None, limit=1)
    assert list(tmp_path.iterdir()) == [kept]


def _full_disk(folder):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_room_is_looked_for_first_and_training_goes_on_without(tmp_path, monkeypatch):
    accelerator, _, _, ema = prepared()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    save = functools.partial(save_checkpoint, accelerator, tmp_path, TrainerState(step=2), ema)
    line = save_or_say(save)
    assert "checkpoint-2 is not saved: it needs 0.0 MiB and 1.0 MiB are free on this disk" in line
    assert not list(tmp_path.iterdir())
    with pytest.raises(SaveError):
        save_or_say(save, may_go_on=False)


def test_a_final_that_cannot_be_written_leaves_a_checkpoint(tmp_path):
    accelerator, _, _, ema = prepared()
    save = functools.partial(save_checkpoint, accelerator, tmp_path, TrainerState(step=7), ema)
    said = []
    with pytest.raises(SaveError, match="final is not saved.*latest goes on from checkpoint-7"):
        with saved_on_failure(save, tmp_path, 7, said.append):
            raise SaveError("final is not saved: the disk is full")
    assert said == [f"saved {tmp_path / 'checkpoint-7'}"]


def test_which_checkpoint(tmp_path):
    assert find_checkpoint(None, tmp_path) is None
    assert find_checkpoint("latest", tmp_path / "nowhere") is None
    accelerator, *_ = prepared()
    save_checkpoint(accelerator, tmp_path, TrainerState(step=5), None)
    assert find_checkpoint("checkpoint-5", tmp_path) == tmp_path / "checkpoint-5"
    assert (
        find_checkpoint(str(tmp_path / "checkpoint-5"), tmp_path / "elsewhere") == tmp_path / "checkpoint-5"
    )
    with pytest.raises(ConfigError, match="checkpoint-6: no such folder; .* has checkpoint-5"):
        find_checkpoint("checkpoint-6", tmp_path)


def test_checkpoints_of_another_run_are_set_aside(tmp_path):
    accelerator, *_ = prepared()
    for turn in (1, 2):
        for step in (1, 2, 3):
            save_checkpoint(accelerator, tmp_path, TrainerState(step=step), None)
        assert len(set_aside_newer(tmp_path, 1)) == 2
        assert list_checkpoints(tmp_path) == [tmp_path / "checkpoint-1"]
        assert (tmp_path / f"checkpoint-3.set-aside-{turn}" / STATE_FILE).exists()


def test_changed_settings_are_told_or_refused(tmp_path):
    accelerator, *_ = prepared()
    state, changes = start_state(None, TrainingArguments(seed=1))
    assert (state.step, changes) == (0, [])
    path = save_checkpoint(accelerator, tmp_path, state, None)
    json.loads((path / STATE_FILE).read_text())
    _, changes = start_state(path, TrainingArguments(seed=1, learning_rate=1.0, num_workers=9))
    assert changes == ["changed since the checkpoint: learning_rate was 0.0001, now it is 1.0"]
    with pytest.raises(
        ConfigError, match="trained with guidance_types = .'music', 'pose'., now it is .'pose'"
    ):
        start_state(path, TrainingArguments(guidance_types=["pose"], guidance_input_channels=[134]))
    with pytest.raises(ConfigError, match="trained with motion_module_path = None, now it is mm.ckpt"):
        start_state(path, TrainingArguments(motion_module_path="mm.ckpt"))
    with pytest.raises(ConfigError, match="trained with prediction_type = v_prediction, now it is epsilon"):
        start_state(path, TrainingArguments(prediction_type="epsilon"))


def test_a_base_of_other_weights_at_the_same_path_is_refused(tmp_path):
    accelerator, *_ = prepared()
    before = {"vae": "1", "image_encoder": "2"}
    arguments = TrainingArguments(
        output_dir=str(tmp_path), resume_from_checkpoint="latest", pretrained_model_name_or_path="sd15",
        vae_model_name_or_path="vae_ft",
    )  # fmt: skip
    _, state, _ = find_start(accelerator, arguments, 1, before)
    path = save_checkpoint(accelerator, tmp_path, state, None)
    assert find_start(accelerator, arguments, 1, before)[0] == path
    with pytest.raises(ConfigError, match=r"another base: image_encoder \(sd15\) had other weights then"):
        find_start(accelerator, arguments, 1, {**before, "image_encoder": "3"})
    with pytest.raises(ConfigError, match=r"another base: vae \(vae_ft\) had other weights then"):
        find_start(accelerator, arguments, 1, {**before, "vae": "3"})
    # Another path is a change that the user asked for, and is told as one.
    for name in ("vae_model_name_or_path", "revision", "variant"):
        moved = dataclasses.replace(arguments, **{name: "elsewhere"})
        _, _, lines = find_start(accelerator, moved, 1, {**before, "vae": "3"})
        assert f"{name} was {getattr(arguments, name)}, now it is elsewhere" in lines[0]
    # Checkpoints of before did not say which base they had.
    path = save_checkpoint(accelerator, tmp_path, start_state(None, arguments)[0], None)
    assert find_start(accelerator, arguments, 1, before)[0] == path
    wider = dataclasses.replace(arguments, guidance_embedding_channels=8)
    with pytest.raises(ConfigError, match="now it is 8, perhaps from another base"):
        find_start(accelerator, wider, 1, before)


def test_another_number_of_clips_a_step_is_told(tmp_path):
    accelerator, *_ = prepared()
    path = save_checkpoint(accelerator, tmp_path, start_state(None, TrainingArguments(), 4)[0], None)
    _, changes = start_state(path, TrainingArguments(train_batch_size=2), 2)
    assert "train_batch_size was 1, now it is 2" in changes[0]
    assert "a step saw 4 clips, now 2" in changes[1]
    assert start_state(path, TrainingArguments(), 4)[1] == []


def test_a_checkpoint_that_does_not_fit_is_one_message(tmp_path):
    accelerator, *_ = prepared()
    path = save_checkpoint(accelerator, tmp_path, TrainerState(step=1), None)
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(3, 4)
    accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(ConfigError, match="does not fit this model and optimizer, or is damaged: .*size"):
        load_checkpoint(accelerator, path, None)


def test_ema_must_be_there_to_go_on(tmp_path):
    accelerator, _, _, ema = prepared()
    path = save_checkpoint(accelerator, tmp_path, TrainerState(step=1), None)
    with pytest.raises(ConfigError, match="without --use_ema"):
        load_checkpoint(accelerator, path, ema)


def test_averaged_weights_are_lent(tmp_path):
    _, model, optimizer, ema = prepared()
    for _ in range(3):
        train_step(model, optimizer, ema)
    own = model.weight.detach().clone()
    with averaged_weights(model, ema):
        assert torch.equal(model.weight, ema.shadow_params[0])
        assert not torch.equal(model.weight, own)
    assert torch.equal(model.weight, own)
    with averaged_weights(model, None):
        assert torch.equal(model.weight, own)
