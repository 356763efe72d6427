"""Stopping on request, and steps whose numbers are not finite."""

import os
import signal

import pytest
import torch
from torch import nn

from training.faults import (
    MAX_SKIPPED_IN_A_ROW,
    NonFiniteError,
    NonFiniteGuard,
    StepFacts,
    StopRequest,
    describe_fault,
    first_bad_module,
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal_number == 0
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
    assert signal.getsignal(number) == before


def test_the_run_stops_after_many_bad_steps_in_a_row():
    guard = NonFiniteGuard()
    for step in range(MAX_SKIPPED_IN_A_ROW - 1):
        assert "non-finite loss" in guard.skip(step, "loss")
    guard.step_was_good()
    for step in range(MAX_SKIPPED_IN_A_ROW - 1):
        guard.skip(step, "loss")
    with pytest.raises(NonFiniteError, match="10 non-finite steps in a row"):
        guard.skip(99, "loss")
    assert guard.steps_skipped == 2 * MAX_SKIPPED_IN_A_ROW - 1


def test_a_fault_names_module_samples_and_timesteps():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert first_bad_module(model) == "loss alone"
    model[1].weight.grad = torch.full((2, 2), float("nan"))
    facts = StepFacts(loss=1.0, grad_norm=float("nan"), signal_number=0)
    assert not facts.is_finite
    message = describe_fault(facts, [(["dance_1", "dance_2"], torch.tensor([5, 900]))], model)
    assert message == (
        "gradient, first in the gradient of 1.weight; samples: dance_1 at timestep 5, dance_2 at timestep 900"
    )
