"""Digests of networks."""

import torch

from caching.source_digests import weights_digest
from models import FrozenEncoders


def test_a_digest_leaves_memory_that_can_be_freed(tiny_base):
    vae = FrozenEncoders.from_pretrained(tiny_base).vae
    before, weight = weights_digest(vae), vae.encoder.layers[0].weight
    assert before == weights_digest(FrozenEncoders.from_pretrained(tiny_base).vae)
    assert weight.untyped_storage().resizable()  # else FSDP cannot free a model that has been digested
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1
    assert weights_digest(vae) != before
