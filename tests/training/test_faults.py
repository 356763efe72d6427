"""Partners that end, steps whose numbers are not finite, and memory that runs out."""

import functools

import pytest
import torch
from torch import nn

from system.errors import RunError
from training import faults
from training.faults import (
    MAX_SKIPPED_IN_A_ROW,
    NonFiniteError,
    NonFiniteGuard,
    describe_fault,
    lost_processes_explained,
    out_of_memory_explained,
)
from training.objective import DiffusionObjective, make_noise_scheduler
from training.settings.checks import memory_advice
from training.settings.fields import TrainingArguments
from training.step import MicroBatch, StepFacts


def test_a_lost_partner_is_one_message():
    words = "[/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
    with pytest.raises(RunError, match="ends because another one did"), lost_processes_explained():
        raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="a bug"), lost_processes_explained():
        raise RuntimeError("a bug")


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


class TwoLayers(nn.Module):
    """A model whose second layer can be spoilt."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, noisy_latents, *conditions, **masks):
        return self.second(self.first(noisy_latents))


def micro_batch(objective, sample_ids, loss=1.0):
    latents = torch.zeros(len(sample_ids), 1, 4, 4, 4)
    draw = objective.draw(latents, [(0, place) for place in range(len(sample_ids))])
    conditions = {"reference_latents": latents, "image_tokens": latents[:, 0, 0], "guidance": {}}

    def repeat(model):
        return objective(model, latents, conditions, draw)

    return MicroBatch(sample_ids, torch.tensor(loss), repeat, draw.timesteps)


def test_a_fault_names_module_samples_and_timesteps():
    model, objective = TwoLayers(), DiffusionObjective(make_noise_scheduler())
    good, bad = micro_batch(objective, ["a", "b"]), micro_batch(objective, ["c", "d"], float("nan"))
    model.second.weight.data.fill_(float("inf"))
    facts = StepFacts(loss=float("nan"), grad_norms={}, signal_number=0)
    assert not facts.is_finite
    first, second = bad.timesteps.tolist()
    assert describe_fault(facts, [good, bad], model) == (
        f"loss, first in the output of second; samples: c at timestep {first}, d at timestep {second}"
    )
    assert not model.second._forward_hooks

    model = TwoLayers()  # the forward pass is fine, a gradient is not
    model.first.bias.grad = torch.full((4,), float("nan"))
    assert describe_fault(facts, [bad], model).startswith("loss, first in the loss function; samples: c")
    assert StepFacts(loss=1.0, grad_norms={"unet": 3.0, "music": 4.0}, signal_number=0).grad_norm == 5.0
    facts = StepFacts(loss=1.0, grad_norms={"unet": 1.0, "music": float("nan")}, signal_number=0)
    message = describe_fault(facts, [good], model)
    assert message.startswith("gradient, first in the gradient of first.bias; samples: a at timestep")
    model.first.bias.grad.fill_(1e30)  # its square is too large
    assert describe_fault(facts, [good], model).startswith("gradient, first in the norm of the gradients, wh")


def test_a_fault_of_another_process_is_named(monkeypatch):
    model, objective = TwoLayers(), DiffusionObjective(make_noise_scheduler())
    theirs = ("first", ["c at timestep 7"])
    monkeypatch.setattr(faults, "gather_object", lambda mine: [*mine, theirs])
    facts = StepFacts(loss=float("nan"), grad_norms={}, signal_number=0)
    assert describe_fault(facts, [micro_batch(objective, ["a", "b"])], model) == (
        "loss, first in the output of first; samples: c at timestep 7"
    )


ADVISE = functools.partial(memory_advice, TrainingArguments())


def test_a_real_lack_of_memory_is_one_message():
    with pytest.raises(RunError) as raised, out_of_memory_explained(ADVISE):
        torch.empty(2**60, dtype=torch.uint8)  # the CPU allocator's own error
    message = str(raised.value)
    assert message.startswith(
        "out of memory: DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    )
    assert "What still helps: --gradient_checkpointing all; --mixed_precision bf16;" in message


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB. More."), MemoryError()]
)
def test_a_gpus_and_pythons_are_too(error):
    with (
        pytest.raises(RunError, match="out of memory: .*still helps"),
        out_of_memory_explained(ADVISE),
    ):
        raise error


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="a bug"), out_of_memory_explained(ADVISE):
        raise RuntimeError("a bug")
