"""Compiled blocks: the same numbers and names; where compiling fails the run goes on and says so.

Compilation takes seconds a block: these tests take a backend that only traces. For real it is done in
test_compiled_training.py.
"""

import re

import pytest
import torch
from torch import nn

from models import ChampModel, create_guidance_encoders
from models.champ.denoising_unet import MotionModule
from models.lora import LoraSettings, add_lora
from training.champ import ready_for_stage
from training.execution import compilation
from training.settings.fields import TrainingArguments

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def make_model(tiny_base, motion_modules):
    torch.manual_seed(0)
    encoders = create_guidance_encoders(["pose"], [134], 32, block_out_channels=(8, 16, 32, 32))
    model = ChampModel.from_pretrained_sd(tiny_base, encoders, motion_modules=motion_modules)
    for parameter in model.parameters():  # zero-initialised layers take part
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return model.train()


def loss_and_gradients(model, num_clips=2, num_frames=2):
    generator = torch.Generator().manual_seed(1)
    frames = num_frames if model.has_motion_modules else 1
    noisy = torch.randn(num_clips, frames, 4, 8, 8, generator=generator)
    prediction = model(
        noisy, torch.tensor([10, 900][:num_clips]), torch.randn(num_clips, 4, 8, 8, generator=generator),
        torch.randn(num_clips, 1, 32, generator=generator),
        {"pose": torch.rand(num_clips, frames, 134, 3, generator=generator)},
        reference_mask=torch.tensor([True, False][:num_clips]),
    )  # fmt: skip
    loss = prediction.square().mean()
    model.zero_grad()
    if loss.requires_grad:
        loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_close(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    largest = max(gradient.abs().max() for gradient in one[1].values())
    difference = max((one[1][name] - other[1][name]).abs().max() for name in one[1])
    assert difference < 1e-4 * largest


@pytest.mark.parametrize(("motion_modules", "lora"), [(True, False), (False, False), (False, True)])
def test_a_step_is_the_same_and_other_shapes_run_as_they_did(tiny_base, motion_modules, lora):
    model = make_model(tiny_base, motion_modules)
    if lora:
        add_lora(model, LoraSettings(rank=2, alpha=2, parts=("unet", "reference_unet")))
    names, lines = list(model.state_dict()), []
    plain = loss_and_gradients(model)
    compilation.compile_blocks(model, lines.append, single_frames=not motion_modules, backend="eager")
    assert list(model.state_dict()) == names and len(names) > 100
    assert_close(loss_and_gradients(model), plain)
    assert len(lines) == 2 and "compiling" in lines[1] and lines[1].endswith(" s")
    num_codes = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.config.error_on_recompile = True
    loss_and_gradients(model)  # a second step
    model.eval()
    with torch.no_grad():  # validation: another batch size
        loss_and_gradients(model, num_clips=1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_codes
    assert len(lines) == 2
    torch._dynamo.config.error_on_recompile = False
    model.train()
    if motion_modules:
        model.enable_gradient_checkpointing()
        assert_close(loss_and_gradients(model), plain)


def no_compiler(graph, inputs):
    raise RuntimeError("No working C++ compiler found")


def no_attention(graph, inputs):
    if any("scaled_dot_product_attention" in str(node.target) for node in graph.graph.nodes):
        raise RuntimeError("no code for attention")
    return graph.forward


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        (no_compiler, ["--compile: the run goes on uncompiled: .*compiler found; install one"]),
        (no_attention, ["compiling 8 of 12 blocks: ", "TransformerBlock runs uncompiled: .*for attention"]),
    ],
)
def test_what_cannot_be_compiled_runs_uncompiled_and_is_told_once(tiny_base, backend, words):
    model, lines = make_model(tiny_base, motion_modules=False), []
    plain = loss_and_gradients(model)
    # Checkpointing calls blocks a second time, when others have failed.
    model.enable_gradient_checkpointing()
    compilation.compile_blocks(model, lines.append, single_frames=False, backend=backend)
    for _ in range(2):
        assert_close(loss_and_gradients(model), plain)
    assert len(lines) == 1 + len(words)
    assert all(re.search(word, line) for word, line in zip(words, lines[1:], strict=True)), lines


def ready(model, arguments):
    return ready_for_stage(model, arguments.training_stage, arguments, single_frames=False)


def test_a_compiler_chooses_by_itself_what_to_compute_again(tiny_base):
    """Selective checkpointing would look into compiled code, and keep what that code overwrites."""
    for compiled in (True, False):
        arguments = TrainingArguments(compile=compiled, gradient_checkpointing="selective")
        model = ready(make_model(tiny_base, motion_modules=True), arguments)
        assert model.unet.is_gradient_checkpointing is not compiled
        assert model.reference_unet.is_gradient_checkpointing  # of clips it is not compiled
        functions = {module.block_function for module in model.modules() if isinstance(module, MotionModule)}
        assert (functions == {None}) is compiled
    everything = TrainingArguments(compile=True, gradient_checkpointing="all")
    model = ready(make_model(tiny_base, motion_modules=True), everything)
    assert model.unet.is_gradient_checkpointing


def test_a_python_without_torch_compile(tiny_base, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("torch.compile is not supported on Python 4")

    monkeypatch.setattr(torch, "compile", refuse)
    model, lines = make_model(tiny_base, motion_modules=False), []
    compilation.compile_blocks(model, lines.append, single_frames=True)
    assert lines == ["--compile: the run goes on uncompiled: torch.compile is not supported on Python 4"]
    loss_and_gradients(model)
