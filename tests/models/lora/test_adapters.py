"""Adapters: where they sit, what trains, scales, merging; and what recomputation makes of them."""

import pytest
import torch

from models import ChampModel, ModelError
from models.lora import (
    LoraSettings,
    add_lora,
    base_digest,
    check_parts,
    has_lora,
    lora_state,
    merge_lora,
    set_lora_scales,
)

SETTINGS = LoraSettings(rank=2, alpha=4)


@pytest.fixture
def base(make_model):
    """Makes a model, all of whose weights count as pretrained."""

    def make(**options):
        model = make_model(**options)
        model.pretrained_names = frozenset(name for name, _ in model.named_parameters())
        return model

    return make


def awake(model, name="default"):
    """Let the adapters do something."""
    torch.manual_seed(7)
    for key, weight in lora_state(model, name).items():
        if ".lora_B." in key:
            torch.nn.init.normal_(weight, std=0.2)
    return model


@torch.no_grad()
def predict(model, inputs):
    return model.eval()(**inputs)


def test_new_adapters_leave_the_output_and_the_digest_as_they_were(base, make_inputs):
    model, inputs = base(), make_inputs()
    before, digest = predict(model, inputs), base_digest(model)
    add_lora(model, SETTINGS)
    assert torch.equal(predict(model, inputs), before)
    assert base_digest(model) == digest
    assert digest.keys() == {
        "unet", "motion_modules", "reference_unet", "guidance_encoders.music", "guidance_encoders.pose"
    }  # fmt: skip


def test_they_sit_on_attention_and_feed_forward_layers_that_get_a_gradient(base, make_inputs):
    model = base()
    add_lora(model, SETTINGS)
    awake(model)
    model(**make_inputs()).square().mean().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == with_gradient == {name for name, _ in model.named_parameters() if ".lora_" in name}
    layers = {key.rsplit(".lora_", 1)[0] for key in lora_state(model)}
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    expected = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_v", "attn2.to_out.0",
                "ff.net.0.proj", "ff.net.2"]  # fmt: skip
    assert {layer for layer in layers if layer.startswith(block)} == {f"{block}.{one}" for one in expected}
    motion = "unet.mid_block.motion_modules.0.transformer_blocks.0"
    assert {f"{motion}.attn2.to_q", f"{motion}.ff.net.2"} < layers
    assert any(layer.startswith("reference_unet.") for layer in layers)


def test_parts_choose_what_is_adapted_and_what_trains_whole(base):
    model = base()
    add_lora(model, LoraSettings(rank=2, alpha=2, parts=("motion", "guidance_encoders")))
    assert all(".motion_modules." in key for key in lora_state(model))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    encoders = {name for name, _ in model.named_parameters() if name.startswith("guidance_encoders.")}
    assert {name for name in trained if ".lora_" not in name} == encoders


def test_merged_and_unmerged_agree_and_scale_0_is_the_base(base, make_inputs):
    model, inputs = base(), make_inputs()
    before, names = predict(model, inputs), set(model.state_dict())
    add_lora(model, SETTINGS)
    awake(model)
    adapted = predict(model, inputs)
    assert (adapted - before).abs().max() > 1e-3
    set_lora_scales(model, {"default": 0.0})
    assert torch.equal(predict(model, inputs), before)
    set_lora_scales(model, {"default": 1.0})
    assert torch.equal(predict(model, inputs), adapted)
    merge_lora(model)
    assert not has_lora(model) and set(model.state_dict()) == names
    torch.testing.assert_close(predict(model, inputs), adapted, rtol=0, atol=1e-5)


def test_reference_features_that_are_known_already_have_the_adapters_in_them(base, make_inputs):
    model, inputs = base(), make_inputs()
    add_lora(model, SETTINGS)
    awake(model)
    with torch.no_grad():
        bank = model.encode_reference(inputs["reference_latents"], inputs["image_tokens"])
        projected = model.project_reference(bank)
    result = predict(model, inputs | {"reference_bank": projected})
    torch.testing.assert_close(result, predict(model, inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("level", ["selective", "all"])
def test_recomputation_leaves_the_gradients_of_adapters_as_they_are(base, make_inputs, level):
    model = base()
    add_lora(model, LoraSettings(rank=2, alpha=4, dropout=0.3))
    awake(model)

    def gradients(level):
        model.enable_gradient_checkpointing(level)
        model.train().zero_grad()
        torch.manual_seed(5)
        model(**make_inputs()).square().mean().backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.requires_grad}

    expected = gradients("none")
    assert all(gradient.any() for gradient in expected.values())
    for name, gradient in gradients(level).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_autocast_keeps_no_second_copy_of_what_enters_an_adapter(base, make_inputs):
    model = base()
    add_lora(model, SETTINGS)
    seen = []
    layer = model.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q
    layer.lora_A["default"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model.enable_gradient_checkpointing("selective")
        model.train()(**make_inputs())
    assert seen == [torch.bfloat16]


def test_what_is_untrained_underneath_is_refused(tiny_base, encoders):
    fresh = ChampModel.from_pretrained_sd(tiny_base, encoders(), motion_modules=True)
    with pytest.raises(ModelError, match="fresh motion modules.*--motion_module_path"):
        check_parts(fresh, SETTINGS.parts)
    image = ChampModel.from_pretrained_sd(tiny_base, encoders(), motion_modules=False)
    with pytest.raises(ModelError, match=r"untrained guidance encoder \(music\).*name guidance_encoders"):
        check_parts(image, ["unet"])
    with pytest.raises(ModelError, match="LoRA on text_encoder: name some of unet"):
        check_parts(image, ["text_encoder"])
    check_parts(image, ["unet", "guidance_encoders"])


def test_a_model_with_idle_motion_modules_is_the_same_base_as_one_without(tiny_base, encoders):
    moving = ChampModel.from_pretrained_sd(tiny_base, encoders(), motion_modules=True)
    still = ChampModel.from_pretrained_sd(tiny_base, encoders(), motion_modules=False)
    assert base_digest(moving) == base_digest(still)
