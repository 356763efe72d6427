"""Processes that are launched in the ways that work, and refused in those that do not."""

import os
from types import SimpleNamespace

import pytest
from accelerate.state import AcceleratorState

from system.errors import ConfigError
from training.execution import launch
from training.settings.fields import TrainingArguments


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


@pytest.mark.parametrize("name", ["DEEPSPEED", "MEGATRON_LM"])
def test_ways_to_distribute_that_cannot_run_are_refused(name, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(ConfigError, match=f"asks for {name}, which this trainer cannot run"):
        launch.make_accelerator(TrainingArguments())
