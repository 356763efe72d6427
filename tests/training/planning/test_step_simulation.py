"""A simulated step holds what the same step holds when it is computed, and leaves the model as it was."""

import contextlib

import pytest
import torch
from torch import nn

from models import FrozenEncoders, GuidanceEncoders, register_guidance_encoder
from models.guidance_encoder import PoseGuidanceEncoder
from tests.training.test_stages import SHAPES, settings
from train_guidance import make_model, make_objective
from training.champ import ChampTask
from training.execution.half_weights import frozen_layer_weights
from training.planning import dry_run, step_simulation
from training.planning.step_simulation import SimulationError, simulate_step

CPU = torch.device("cpu")


def a_batch(clips=1, frames=3, side=64):
    return {
        "frames": torch.zeros(clips, frames, 3, side, side),
        "reference_image": torch.zeros(clips, 3, side, side),
        "clip_image": torch.zeros(clips, 3, 224, 224),
        "frame_indices": torch.zeros(clips, frames, dtype=torch.int64),
        "sample_id": ["a"] * clips,
        "guidance": {
            "music": torch.zeros(clips, frames, 35), "pose": torch.zeros(clips, frames, 134, 3)
        },
    }  # fmt: skip


def make_task(arguments, shapes=SHAPES):
    frozen = FrozenEncoders.from_pretrained(arguments.pretrained_model_name_or_path)
    objective = make_objective(arguments, arguments.guidance_types, None)
    return ChampTask(arguments, None, make_model(arguments, shapes), frozen, objective)


def simulate(arguments, batch=None, **options):
    return simulate_step(make_task(arguments), batch or a_batch(), device=CPU, **options)


@pytest.mark.parametrize(
    "changes",
    [
        {"training_stage": "joint", "use_ema": True, "gradient_accumulation_steps": 2},
        {"training_stage": "image", "mixed_precision": "bf16", "gradient_checkpointing": "all"},
        {
            "training_stage": "motion",
            "cache_latents": True,
            "cache_features": True,
            "gradient_checkpointing": "none",
            "region_weights": ["hands=3"],
        },
    ],
    ids=lambda changes: changes["training_stage"],
)
def test_it_holds_what_a_computed_step_holds(tiny_base, monkeypatch, changes):
    arguments = settings(tiny_base, **changes)
    simulated = simulate(arguments)

    def true_weights(module, device, dtype_of):
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype_of(tensor))
        return contextlib.nullcontext()

    monkeypatch.setattr(step_simulation, "storageless", true_weights)
    monkeypatch.setattr(step_simulation, "FakeTensorMode", lambda **_: contextlib.nullcontext())
    computed = simulate(arguments)
    for part in ("weights", "gradients", "optimizer", "activations", "total"):
        # Some operations hand out another's storage where there is one: a few bytes.
        assert getattr(simulated, part) == pytest.approx(getattr(computed, part), rel=0.01, abs=4096), part
    assert simulated.phase == computed.phase


def test_the_model_is_as_it_was(tiny_base):
    task = make_task(settings(tiny_base))
    tensors = {**dict(task.model.named_parameters()), **dict(task.frozen.named_parameters())}
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    simulate_step(task, a_batch(), device=CPU)
    after = {**dict(task.model.named_parameters()), **dict(task.frozen.named_parameters())}
    assert all(after[name] is tensors[name] and tensors[name].grad is None for name in tensors)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert type(task.objective.scheduler.alphas_cumprod) is torch.Tensor


def test_what_settings_change(tiny_base):
    plain = simulate(settings(tiny_base, gradient_checkpointing="none"))
    model = make_model(settings(tiny_base), SHAPES)
    assert plain.weights > 4 * sum(parameter.numel() for parameter in model.parameters())
    less = simulate(settings(tiny_base, use_8bit_adam=True, gradient_checkpointing="all"))
    assert less.optimizer < 0.5 * plain.optimizer and less.activations < plain.activations


def test_a_gpu_has_frozen_weights_in_half_precision(tiny_base):
    arguments = settings(tiny_base, training_stage="motion", mixed_precision="bf16")
    on_cpu, on_gpu = (simulate(arguments, as_gpu=as_gpu) for as_gpu in (False, True))
    frozen = frozen_layer_weights(make_model(arguments, SHAPES))
    assert on_cpu.weights - on_gpu.weights == 2 * sum(parameter.numel() for parameter in frozen)


def test_a_gpu_fills_a_feature_cache_by_halved_weights_and_leaves_them_out(tiny_base):
    cached = {"training_stage": "motion", "mixed_precision": "bf16", "cache_latents": True}
    caches = (settings(tiny_base, **cached, cache_features=features) for features in (False, True))
    computed, read = (simulate(arguments, as_gpu=True) for arguments in caches)
    assert read.weights < computed.weights


def test_a_gpu_keeps_norms_in_float32_and_cached_encoders_elsewhere(tiny_base):
    arguments = settings(
        tiny_base, training_stage="image", mixed_precision="bf16", cache_latents=True
    )  # fmt: skip
    on_cpu, on_gpu = (simulate(arguments, a_batch(frames=1), as_gpu=as_gpu) for as_gpu in (False, True))
    assert on_gpu.weights < on_cpu.weights and on_gpu.activations > on_cpu.activations


def test_a_gpu_takes_all_images_at_once_and_a_cpu_few(tiny_base, monkeypatch):
    """The pose encoder is called once a step on a GPU; on this CPU, whose cache holds one image, thrice."""
    monkeypatch.setattr(GuidanceEncoders, "cpu_pixels", 64 * 64)
    calls, encode = [], PoseGuidanceEncoder.forward

    def counted(*inputs, **options):
        calls.append(1)
        return encode(*inputs, **options)

    monkeypatch.setattr(PoseGuidanceEncoder, "forward", counted)
    arguments = settings(tiny_base, training_stage="motion", gradient_checkpointing="none")
    for as_gpu, expected in ((False, 3), (True, 1)):
        calls.clear()
        simulate(arguments, as_gpu=as_gpu)
        assert len(calls) == expected


@register_guidance_encoder("looks_at_values", kind="vector")
class LooksAtValues(nn.Module):
    def __init__(self, guidance_embedding_channels, guidance_input_channels):
        super().__init__()
        self.linear = nn.Linear(guidance_input_channels, guidance_embedding_channels)

    def forward(self, condition):
        return self.linear(condition) if condition.max().item() > 0 else self.linear(-condition)


def test_where_it_cannot_run_there_is_a_reason_and_no_figure(tiny_base):
    arguments = settings(tiny_base, guidance_types=["looks_at_values"])
    arguments.guidance_input_channels = [35]
    task = make_task(arguments, {})
    batch = a_batch() | {"guidance": {"looks_at_values": torch.zeros(1, 3, 35)}}
    with pytest.raises(SimulationError, match=r"(?s)^DataDependentOutputException.*in LooksAtValues"):
        simulate_step(task, batch, device=CPU)
    (line,) = dry_run.memory_lines(arguments, task, batch, CPU)
    assert "no figure" in line and "GiB" not in line and "\n" not in line
    with pytest.raises(SimulationError, match="mps"):
        simulate_step(task, batch, device=torch.device("mps"))
