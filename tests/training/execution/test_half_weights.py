"""Frozen weights in half precision: the same numbers to the bit, and nothing rounded in what is saved."""

import pytest
import torch
from torch import nn

from models import ChampModel, create_guidance_encoders
from models.lora import LoraSettings, add_lora
from training.execution import half_weights
from training.stages import STAGES, freeze_for_stage


@pytest.fixture(autouse=True)
def also_on_a_cpu(monkeypatch):
    monkeypatch.setattr(half_weights, "saves_memory", lambda device: True)


@pytest.fixture
def model(tiny_base):
    torch.manual_seed(0)
    encoders = create_guidance_encoders(["pose", "depth"], [134, 3], 32, block_out_channels=(8, 16, 32, 32))
    model = ChampModel.from_pretrained_sd(tiny_base, encoders)
    for parameter in model.parameters():  # zero-initialised layers take part
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    freeze_for_stage(model, STAGES["motion"])
    return model


def halve(model, dtype=torch.bfloat16, is_main=True):
    return half_weights.halve_frozen(model, dtype, torch.device("cpu"), is_main=is_main)


def loss_and_gradients(model, **options):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.rand(shape, generator=generator)

    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        guidance = {"pose": draw(2, 3, 134, 3), "depth": draw(2, 3, 3, 64, 64)}
        prediction = model(
            draw(2, 3, 4, 8, 8), torch.tensor([10, 900]), draw(2, 4, 8, 8), draw(2, 1, 32), guidance,
            reference_mask=torch.tensor([True, False]),
        )  # fmt: skip
    loss = prediction.float().square().mean()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


@pytest.mark.parametrize(("checkpointing", "lora"), [(False, False), (True, False), (True, True)])
def test_a_step_has_the_same_bits(model, checkpointing, lora):
    if lora:
        add_lora(model, LoraSettings(rank=2, alpha=2, parts=("unet", "motion")))
    if checkpointing:
        model.enable_gradient_checkpointing()
    plain = [tensor.clone() for tensor in loss_and_gradients(model)]
    halve(model)
    assert model.reference_unet.conv_in.weight.dtype == torch.bfloat16
    assert all(map(torch.equal, loss_and_gradients(model), plain)) and len(plain) > 50


def test_only_what_autocast_casts_is_touched(model):
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    weights = halve(model)
    for name, parameter in model.named_parameters():
        layer = model.get_submodule(name.rpartition(".")[0])
        is_half = isinstance(layer, nn.Linear | nn.Conv2d) and not parameter.requires_grad
        is_half &= not name.startswith("guidance_encoders.")
        assert parameter.dtype == (torch.bfloat16 if is_half else torch.float32), name
    assert sum(parameter.nbytes for parameter in model.parameters()) < 0.8 * num_bytes
    with weights.exact():
        assert all(map(torch.equal, model.parameters(), before.values()))
    assert model.unet.conv_in.weight.dtype == torch.bfloat16


def test_other_processes_keep_no_originals_and_float32_stays(model):
    weights = halve(model, is_main=False)
    with weights.exact():
        assert model.unet.conv_in.weight.dtype == torch.bfloat16
    assert weights.originals == []
    model.float()
    halve(model, torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
