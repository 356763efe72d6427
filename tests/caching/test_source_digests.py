"""Digests of networks."""

import torch
from torch import nn

from caching.source_digests import values_digest, weights_digest
from models import FrozenEncoders


def test_a_digest_leaves_memory_that_can_be_freed(tiny_base):
    vae = FrozenEncoders.from_pretrained(tiny_base).vae
    before, weight = weights_digest(vae), vae.encoder.layers[0].weight
    assert before == weights_digest(FrozenEncoders.from_pretrained(tiny_base).vae)
    assert weight.untyped_storage().resizable()  # else FSDP cannot free a model that has been digested
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1
    assert weights_digest(vae) != before


def test_values_are_the_same_whatever_a_library_calls_and_configures():
    old, new = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), nn.ModuleDict()
    new["renamed"], new["first"] = old[1], old[0]
    new.register_buffer("positions", torch.arange(4))
    before = values_digest(old)
    assert values_digest(new) == before
    with torch.no_grad():
        new["first"].weight[0, 0] += 1
    assert values_digest(new) != before
