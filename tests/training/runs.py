"""Runs of the trainer, in this process or in two, with the fixture `flags`; and what they wrote."""

import os
import signal
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_guidance
from benchmarks.fault_injection import RESUME, train
from training.run_log import RunLog

WEIGHTS = {
    "unet": "final/unet/diffusion_pytorch_model.safetensors",
    "reference_unet": "final/reference_unet/diffusion_pytorch_model.safetensors",
    "guidance_encoders": "final/guidance_encoders/diffusion_pytorch_model.safetensors",
}


def run(flags, *more, main=train_guidance.main):
    """Return the exit code of a run in this process, with accelerate's memory of earlier runs wiped."""
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()
    return main([*flags, *map(str, more)])


def scalars(log_dir, name):
    """Return the logged values of a scalar, in order."""
    events = EventAccumulator(str(next(Path(log_dir).glob("*/"))))
    events.Reload()
    return [event.value for event in events.Scalars(name)]


def final_weights(out):
    return {
        f"{part}.{key}": value
        for part, path in WEIGHTS.items()
        for key, value in load_file(out / path).items()
    }


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def stop_after(step, monkeypatch):
    """Let SIGTERM come to this process when a step is logged; the step after it is still finished."""
    log_step = RunLog.step

    def log_and_stop(log, now, values):
        log_step(log, now, values)
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunLog, "step", log_and_stop)


def train_in_two_processes(argv, console, environment=None, program="train_guidance"):
    """Return the exit code of two processes that train together, forked from one that has imported it all."""
    keywords = {"log_path": console, "num_processes": 2, "environment": environment, "program": program}
    return train([*argv, *RESUME], **keywords)
