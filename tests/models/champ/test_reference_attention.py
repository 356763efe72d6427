"""Reference attention of the assembled model: the mask, keys and values made once per clip."""

import pytest
import torch

from models import ChampModel


def test_reference_mask_false_is_the_model_without_reference(make_model, make_inputs):
    model, inputs = make_model(), make_inputs()
    with torch.no_grad():
        features = model.encode_guidance(inputs["guidance"], (8, 8))
        arguments = inputs["noisy_latents"], inputs["timesteps"], inputs["image_tokens"]
        without = model.denoise(*arguments, bank=None, features=features)
        with_reference = model(**inputs)
        mixed = model(**inputs, reference_mask=torch.tensor([True, False]))
    torch.testing.assert_close(mixed[0], with_reference[0])
    torch.testing.assert_close(mixed[1], without[1])
    assert (with_reference - without).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, [True, False]])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_reference_projected_once_gives_the_same_bits(make_model, make_inputs, mask, precision):
    model, inputs = make_model(), make_inputs()
    features = model.encode_guidance(inputs["guidance"], (8, 8))
    bank = model.encode_reference(inputs["reference_latents"], inputs["image_tokens"])
    rest = features, None if mask is None else torch.tensor(mask)
    arguments = inputs["noisy_latents"], inputs["timesteps"], inputs["image_tokens"]
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        expected, projected = model.denoise(*arguments, bank, *rest), model.project_reference(bank)
        assert all(part.dtype == precision for pair in projected.values() for part in pair)
        calls = count_calls_of_keys(model, bank)
        assert torch.equal(model.denoise(*arguments, projected, *rest), expected)
    assert calls == [1] * len(bank)  # of own tokens alone


def count_calls_of_keys(model: ChampModel, bank: dict) -> list[int]:
    """A list of how often each layer that reads the bank makes keys from here on."""
    counts = [0] * len(bank)
    for index, name in enumerate(bank):

        def count(*_, index=index):
            counts[index] += 1

        model.unet.get_submodule(name.removesuffix("processor") + "to_k").register_forward_hook(count)
    return counts


def test_a_reference_is_not_projected_by_weights_that_are_elsewhere(make_model):
    model = make_model()
    names = [name for name in model.reference_unet.attn_processors if name.endswith("attn1.processor")]
    bank = {name: torch.zeros(1, 4, 8, device="meta") for name in names}
    assert model.project_reference(bank) == bank
