"""Processes that are launched in the ways that work, and refused in those that do not."""

import contextlib
import os
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState

from system.errors import ConfigError
from training.execution import launch
from training.settings.fields import TrainingArguments
from training.settings.parsing import parse_arguments


def test_local_rank_is_for_old_launchers(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    launch.make_accelerator(TrainingArguments(local_rank=3))
    assert "LOCAL_RANK" not in os.environ  # nobody launched this process
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("RANK", "0")
    with monkeypatch.context() as patched:
        patched.setattr(
            launch,
            "Accelerator",
            lambda **settings: SimpleNamespace(num_processes=1),
        )
        launch.make_accelerator(TrainingArguments(local_rank=3))
    assert os.environ.pop("LOCAL_RANK") == "3"


def test_processes_that_do_not_find_each_other_stop(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(launch, "Accelerator", lambda **settings: SimpleNamespace(num_processes=1))
    with pytest.raises(ConfigError, match="started 2 processes"):
        launch.make_accelerator(TrainingArguments())


def test_partners_that_never_come_are_no_matter_of_a_drive(monkeypatch):
    waits = []

    def bounded(what, patience):
        waits.append((what(), patience.fix))
        return contextlib.nullcontext()

    monkeypatch.setattr(launch, "bounded", bounded)
    monkeypatch.setattr(launch, "Accelerator", lambda **settings: SimpleNamespace(num_processes=2))
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "node"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    launch.make_accelerator(TrainingArguments())
    ((what, fix),) = waits
    assert "at node:29500" in what and "all were started and reach that address" in fix


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM"])
def test_ways_to_distribute_that_cannot_run_are_refused(name, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=f"asks for {name}, which this trainer cannot run"):
        launch.make_accelerator(TrainingArguments())


def test_processes_of_mpirun_are_counted_where_accelerate_takes_them(monkeypatch):
    # mpirun, as an accelerate configuration with mpirun_config starts it, sets no WORLD_SIZE.
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert launch.count_launched() == 1
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert launch.count_launched() == 2


@pytest.mark.parametrize("of_the_cpu", [("ACCELERATE_USE_CPU", "true"), ("ACCELERATE_TORCH_DEVICE", "cpu:0")])
@pytest.mark.parametrize("variable", ["ACCELERATE_MIXED_PRECISION", None])
def test_fp16_on_the_cpu_is_refused_with_who_asked_for_it(variable, of_the_cpu, monkeypatch):
    monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(*of_the_cpu)  # with which accelerate would train in float32
    argv, environ = (["--mixed_precision", "fp16"], {}) if variable is None else ([], {variable: "fp16"})
    with pytest.raises(ConfigError, match=f"{variable or '--mixed_precision'}[ =]fp16 needs a GPU"):
        launch.make_accelerator(parse_arguments(argv, environ))


def test_what_accelerate_refuses_is_one_line(monkeypatch):
    def refuse(**_):
        raise ImportError("To set CPU affinity\n  `pynvml` must be available")

    monkeypatch.setattr(launch, "Accelerator", refuse)
    with pytest.raises(ConfigError, match="^accelerate: To set CPU affinity `pynvml` must be available$"):
        launch.make_accelerator(TrainingArguments())
