"""A second trainer of under 60 lines has exact resume, faults, TensorBoard and two processes from `fit`."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from system.errors import RunError
from system.patience import MOST_SECONDS, NOTE_SECONDS
from system.stop_request import GRACE_SECONDS, Stopped, StopRequest
from tests.training import toy_trainer
from training import loop
from training.checkpoints.folders import BEST_NAME
from training.checkpoints.saving import EMA_FILE, read_state
from training.execution.launch import forget_frames
from training.loop import HOW_TO_GO_ON
from training.settings.fields import RunSettings

SCRIPT = Path(toy_trainer.__file__)


@pytest.fixture
def settings(tmp_path):
    def make(name, **changes):
        output_dir = tmp_path / name
        return RunSettings(
            **{"output_dir": str(output_dir), "logging_dir": str(output_dir / "logs"),
               "resume_from_checkpoint": "latest", "max_train_steps": 4, "learning_rate": 0.1,
               "train_batch_size": 2, "use_ema": True, **changes}
        )  # fmt: skip

    return make


def line(settings_or_path):
    path = getattr(settings_or_path, "output_dir", settings_or_path)
    return load_file(Path(path) / "final" / "line.safetensors")


def test_it_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 60


def test_it_resumes_exactly_and_logs(settings):
    whole, parts = settings("whole"), settings("parts", checkpointing_steps=2)
    assert toy_trainer.train(whole) == 0
    events = EventAccumulator(str(Path(whole.logging_dir) / "whole")).Reload()
    scalars = {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert scalars["step"] == [1, 2, 3, 4] and len(scalars["train_loss"]) == 4
    assert scalars["grad_norm/model"] == scalars["grad_norm"]

    class Killed(Exception):
        pass

    def killed_at_the_third(task, model, batch, loss=toy_trainer.Line.loss):
        if 4 in batch["position"]:
            raise Killed
        return loss(task, model, batch)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(Killed):
        patched.setattr(toy_trainer.Line, "loss", killed_at_the_third)
        toy_trainer.train(parts)
    assert (Path(parts.output_dir) / "checkpoint-2").is_dir()
    assert toy_trainer.train(parts) == 0
    assert all(torch.equal(tensor, line(parts)[name]) for name, tensor in line(whole).items())


def kept(settings):
    """Return (step, weights, averages) of a run's checkpoint-best."""
    folder = Path(settings.output_dir) / BEST_NAME
    return read_state(folder).step, load_file(folder / "model.safetensors"), load_file(folder / EMA_FILE)


@pytest.mark.parametrize("losses", [(3, 2, 1, 4), (1, 2, 1, float("nan"))])
def test_a_stopped_run_keeps_the_same_best(settings, monkeypatch, losses, capsys):
    """Also where it was killed after a better validation than that of the checkpoint it goes on from."""
    monkeypatch.setattr(toy_trainer.Line, "validate", lambda task, log, step: {"val_loss": losses[step - 1]})
    often = {"validation_steps": 1, "keep_best": "val_loss", "checkpointing_steps": 2}
    whole, parts = settings("whole", **often), settings("parts", checkpoints_total_limit=1, **often)
    assert toy_trainer.train(whole) == 0
    assert ("no finite val_loss" in capsys.readouterr().err) == (losses[-1] != losses[-1])
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(toy_trainer.Line, "loss", killed_at_the_fourth)
        toy_trainer.train(parts)
    assert toy_trainer.train(parts) == 0
    step, *weights = kept(whole)
    assert step == 1 + min(range(4), key=lambda place: losses[place])
    assert kept(parts)[0] == step
    for whole_tensors, tensors in zip(weights, kept(parts)[1:], strict=True):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in whole_tensors.items())
    found = sorted(path.name for path in Path(parts.output_dir).glob("checkpoint-*"))
    assert found == ["checkpoint-4", BEST_NAME]


def killed_at_the_fourth(task, model, batch, loss=toy_trainer.Line.loss):
    return loss(task, model, batch) if 6 not in batch["position"] else 1 / 0


def test_a_full_disk_leaves_the_best_before(settings, monkeypatch, capsys):
    losses, usage = {1: 2.0, 2: 1.0, 3: 1.5, 4: 1.75}, shutil.disk_usage(tempfile.gettempdir())
    room = []

    def validate(task, log, step):
        room.append(2**30 if step != 2 else 0)
        return {"val_loss": losses[step]}

    monkeypatch.setattr(toy_trainer.Line, "validate", validate)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=(room or [2**30])[-1]))
    full = settings("full", validation_steps=1, keep_best="val_loss")
    assert toy_trainer.train(full) == 0
    assert kept(full)[0] == 3  # the best of those that could be saved
    said = capsys.readouterr().err
    assert f"warning: {full.output_dir}/{BEST_NAME} is not saved" in said and "the best so far stays" in said


def test_the_best_can_be_made_the_final_model(settings, monkeypatch):
    """By the command of the guide: another --output_dir, from checkpoint-best, no step more."""
    losses = (2, 1, 3, 4)
    monkeypatch.setattr(toy_trainer.Line, "validate", lambda task, log, step: {"val_loss": losses[step - 1]})
    run = settings("run", validation_steps=1, keep_best="val_loss")
    assert toy_trainer.train(run) == 0
    from_best = {"resume_from_checkpoint": f"{run.output_dir}/{BEST_NAME}", "max_train_steps": 2}
    best = settings("best", keep_best="val_loss", **from_best)
    assert toy_trainer.train(best) == 0
    averages = kept(run)[2]
    assert torch.equal(line(best)["weight"], averages["0"]) and torch.equal(line(best)["bias"], averages["1"])
    assert not torch.equal(line(best)["weight"], line(run)["weight"])


def test_after_a_request_no_other_process_is_awaited_for_long(settings, monkeypatch):
    with StopRequest() as stop:
        with loop.others_awaited(SimpleNamespace(num_processes=2), stop, 3.0):
            assert stop._wait[1] == GRACE_SECONDS + 6
        assert stop._wait is None
    graces, agree_on_step = [], loop.agree_on_step

    def as_one_of_two(accelerator, stop, step_seconds, awaited=loop.others_awaited):
        return awaited(SimpleNamespace(num_processes=2), stop, step_seconds)

    def agree(*args):
        graces.append(StopRequest.innermost()._wait[1])
        return agree_on_step(*args)

    monkeypatch.setattr(loop, "others_awaited", as_one_of_two)
    monkeypatch.setattr(loop, "agree_on_step", agree)
    assert toy_trainer.train(settings("run", max_train_steps=2)) == 0
    assert graces[0] == GRACE_SECONDS + 2 * loop.FIRST_STEP_SECONDS and graces[1] < graces[0]


def test_without_a_request_no_other_process_is_awaited_for_hours(settings, monkeypatch):
    waits, others_awaited = [], loop.others_awaited

    def bounded(what, patience):
        waits.append(patience)
        return contextlib.nullcontext()

    def as_one_of_two(accelerator, stop, step_seconds):
        return others_awaited(SimpleNamespace(num_processes=2), stop, step_seconds)

    monkeypatch.setattr(loop, "bounded", bounded)
    assert toy_trainer.train(settings("alone", max_train_steps=1)) == 0 and not waits
    monkeypatch.setattr(loop, "others_awaited", as_one_of_two)
    assert toy_trainer.train(settings("run", max_train_steps=2)) == 0
    first, second = waits
    # Longer than another process may wait for its data, which names the sample, and than a slow step.
    assert first.most_seconds == 2 * MOST_SECONDS + 10 * loop.FIRST_STEP_SECONDS
    assert 2 * MOST_SECONDS < second.most_seconds < first.most_seconds
    assert second.note_seconds > NOTE_SECONDS and "--resume_from_checkpoint latest" in second.fix


def test_the_model_is_let_go_before_the_processes_part(settings, monkeypatch):
    """DDP, were it the last to hold the process group, could wait for gloo's thread for ever."""
    runs, start_run, at_the_end = [], toy_trainer.start_run, []

    def started(*args, **options):
        runs.append(start_run(*args, **options))
        return runs[0]

    monkeypatch.setattr(toy_trainer, "start_run", started)

    def end_training(accelerator):
        at_the_end.append((runs[0].model, accelerator._models))

    monkeypatch.setattr(Accelerator, "end_training", end_training)
    assert toy_trainer.train(settings("let_go", max_train_steps=1)) == 0
    assert at_the_end == [(None, [])]


def test_frames_of_an_error_hold_nothing():
    class Held:
        pass

    def fail():
        held = Held()
        places.append(weakref.ref(held))
        raise ValueError("inner")

    places, error = [], None
    try:
        try:
            fail()
        except ValueError:
            raise RuntimeError("outer") from None
    except RuntimeError as caught:
        error = caught
    assert places[0]() is not None
    forget_frames(error)
    assert places[0]() is None


def test_its_faults_are_skipped_and_named(settings, capsys):
    bad = torch.tensor(2 / 6).item()
    assert toy_trainer.train(settings("bad", max_train_steps=3), bad_x=bad) == 0
    (fault,) = [text for text in capsys.readouterr().err.splitlines() if "non-finite" in text]
    assert "non-finite loss, first in the loss function; samples: number_" in fault
    assert "number_2" in fault and "(1 so far)" in fault
    with pytest.raises(RunError, match="10 non-finite steps in a row"):
        always = settings("always", train_batch_size=6, max_train_steps=20)
        toy_trainer.train(always, bad_x=bad)


def test_a_request_to_stop_saves(settings):
    def asked_to_stop(task, model, batch, loss=toy_trainer.Line.loss):
        if 2 in batch["position"]:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(task, model, batch)

    stopped = settings("stopped")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(toy_trainer.Line, "loss", asked_to_stop)
        assert toy_trainer.train(stopped) == 128 + signal.SIGTERM
    assert (Path(stopped.output_dir) / "checkpoint-2").is_dir()


def test_data_that_do_not_come_end_a_stopped_run_with_what_is_trained(settings, capsys):
    """As endless_batches does when it is asked to stop, and the next batch does not come."""
    whole, parts = settings("whole"), settings("parts")
    assert toy_trainer.train(whole) == 0
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(toy_trainer, "endless_batches", batches_until(2))
        assert toy_trainer.train(parts) == 128 + signal.SIGTERM
        said = capsys.readouterr().err
        assert HOW_TO_GO_ON in said.partition("stopped while it waited for number_3")[2]
        patched.setattr(toy_trainer, "endless_batches", batches_until(0))
        assert toy_trainer.train(parts) == 128 + signal.SIGTERM  # at once: it is saved already
    assert [path.name for path in Path(parts.output_dir).glob("checkpoint-*")] == ["checkpoint-2"]
    assert toy_trainer.train(parts) == 0
    assert all(torch.equal(tensor, line(parts)[name]) for name, tensor in line(whole).items())


def test_before_the_first_step_there_is_nothing_to_save(settings, monkeypatch):
    monkeypatch.setattr(toy_trainer, "endless_batches", batches_until(0))
    with pytest.raises(Stopped, match="waited for number_3"):
        toy_trainer.train(settings("early"))
    assert not list(Path(settings("early").output_dir).glob("checkpoint-*"))


def batches_until(count, batches=toy_trainer.endless_batches):
    """Return a stand-in for endless_batches that is stopped after `count` batches."""

    def stopped_batches(*args, **options):
        yield from itertools.islice(batches(*args, **options), count)
        raise Stopped(signal.SIGTERM, "stopped while it waited for number_3")

    return stopped_batches


@pytest.mark.parametrize(
    "way", [{}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}], ids=["ddp", "fsdp"]
)
def test_two_processes_equal_one_with_twice_the_batch(repository, tmp_path, settings, way):
    one = settings("one", learning_rate=1e-4, use_ema=False)
    assert toy_trainer.train(one) == 0
    environment = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", **way}
    launcher = [sys.executable, repository / "scripts/launch.py", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(repository / SCRIPT), "two", "1"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name, tensor in line(one).items():
        torch.testing.assert_close(line(tmp_path / "two")[name], tensor, rtol=1e-6, atol=1e-7)
