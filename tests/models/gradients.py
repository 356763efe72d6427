"""Gradients of a model, by the names of its parameters."""

import torch

from models import ChampModel


def gradients(model: ChampModel, inputs: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).square().mean().backward()
    return {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }
