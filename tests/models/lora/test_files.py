"""Files of adapters: what they hold, and what they are put on."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from models import ChampModel, ModelError
from models.lora import LoraSettings, add_lora, load_lora, load_loras, lora_state, save_lora, set_lora_scales
from models.lora.files import LORA_FILE


@pytest.fixture
def base_dir(make_model, tmp_path):
    make_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def trained(base_dir, *parts, seed=7):
    """A model with adapters that do something."""
    model = ChampModel.from_pretrained(base_dir)
    add_lora(model, LoraSettings(2, 4, parts=parts or ("unet", "reference_unet", "motion")))
    torch.manual_seed(seed)
    for key, weight in lora_state(model).items():
        if ".lora_B." in key:
            torch.nn.init.normal_(weight, std=0.2)
    return model


@torch.no_grad()
def predict(model, inputs):
    return model.eval()(**inputs)


def test_a_saved_lora_is_the_same_on_its_base_again(base_dir, make_inputs, tmp_path):
    model, inputs = trained(base_dir), make_inputs()
    save_lora(model, tmp_path / "final")
    assert [path.name for path in (tmp_path / "final").iterdir()] == [LORA_FILE]
    loaded = ChampModel.from_pretrained(base_dir)
    before = predict(loaded, inputs)
    load_lora(loaded, tmp_path / "final")
    assert torch.equal(predict(loaded, inputs), predict(model, inputs))
    set_lora_scales(loaded, {"default": 0})
    assert torch.equal(predict(loaded, inputs), before)
    again = ChampModel.from_pretrained(base_dir)
    load_lora(again, tmp_path / "final" / LORA_FILE, scale=0.5)
    set_lora_scales(loaded, {"default": 0.5})
    assert torch.equal(predict(again, inputs), predict(loaded, inputs))


def test_the_file_is_in_diffusers_form(base_dir, tmp_path):
    save_lora(trained(base_dir), tmp_path)
    state = load_file(tmp_path / LORA_FILE)
    block = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert state[f"unet.{block}.lora_A.weight"].shape == (2, 32)
    assert state[f"reference_unet.{block}.lora_B.weight"].shape == (32, 2)
    assert "unet.mid_block.motion_modules.0.transformer_blocks.0.ff.net.0.proj.lora_A.weight" in state
    with safe_open(tmp_path / LORA_FILE, "pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["lora_adapter_metadata"])
    assert (config["unet.r"], config["reference_unet.lora_alpha"]) == (2, 4)
    assert {"unet", "motion_modules"} < json.loads(metadata["base_digest"]).keys()


def test_diffusers_own_loader_reads_it(base_dir, make_inputs, tmp_path):
    model = trained(base_dir, "unet")
    save_lora(model, tmp_path)
    stock = ChampModel.from_pretrained(base_dir)
    stock.unet.load_lora_adapter(load_file(tmp_path / LORA_FILE), prefix="unet", adapter_name="default",
                                 network_alphas=None, metadata=_metadata(tmp_path))  # fmt: skip
    torch.testing.assert_close(predict(stock, make_inputs()), predict(model, make_inputs()))


def _metadata(folder):
    with safe_open(folder / LORA_FILE, "pt") as file:
        return json.loads(file.metadata()["lora_adapter_metadata"])


def test_several_at_once_add_up_with_their_scales(base_dir, make_inputs, tmp_path):
    inputs = make_inputs()
    for name, parts, seed in (("one", ("unet", "motion"), 1), ("two", ("reference_unet", "unet"), 2)):
        save_lora(trained(base_dir, *parts, seed=seed), tmp_path / name)
    paths, alone = [tmp_path / "one", tmp_path / "two"], ChampModel.from_pretrained(base_dir)
    load_lora(alone, paths[0], scale=0.5)
    both = ChampModel.from_pretrained(base_dir)
    names = load_loras(both, paths, [0.5, 0.0])
    assert torch.equal(predict(both, inputs), predict(alone, inputs))
    set_lora_scales(both, dict(zip(names, [0.5, 1.0], strict=True)))
    other = ChampModel.from_pretrained(base_dir)
    load_loras(other, paths, [0.5, 1.0])
    assert torch.equal(predict(both, inputs), predict(other, inputs))
    assert not torch.equal(predict(both, inputs), predict(alone, inputs))


def test_encoders_that_were_trained_whole_come_along(base_dir, make_inputs, tmp_path):
    model, inputs = trained(base_dir, "unet", "guidance_encoders"), make_inputs()
    with torch.no_grad():
        for parameter in model.guidance_encoders.parameters():
            parameter.add_(0.1)
    save_lora(model, tmp_path / "one", whole_encoders=True)
    loaded = ChampModel.from_pretrained(base_dir)
    load_lora(loaded, tmp_path / "one")
    assert torch.equal(predict(loaded, inputs), predict(model, inputs))
    off = ChampModel.from_pretrained(base_dir)
    load_lora(off, tmp_path / "one", scale=0)
    assert torch.equal(predict(off, inputs), predict(ChampModel.from_pretrained(base_dir), inputs))
    with pytest.raises(ModelError, match="each brings guidance encoders"):
        load_loras(ChampModel.from_pretrained(base_dir), [tmp_path / "one"] * 2, [1, 1])


def test_a_type_that_the_base_does_not_have_comes_along(make_model, make_inputs, tmp_path):
    make_model(types=("pose",), channels=(5,)).save_pretrained(tmp_path / "base")
    pose, both = ChampModel.from_pretrained(tmp_path / "base"), make_model()
    model = ChampModel(pose.unet, pose.reference_unet, both.guidance_encoders)
    model._set_pretrained_names(set(), loaded_types={"pose"})
    add_lora(model, LoraSettings(2, 2, parts=("unet", "guidance_encoders")))
    save_lora(model, tmp_path / "one", whole_encoders=True)
    loaded = ChampModel.from_pretrained(tmp_path / "base")
    load_lora(loaded, tmp_path / "one")
    assert torch.equal(predict(loaded, make_inputs()), predict(model, make_inputs()))
    loaded.guidance_encoders.save_pretrained(tmp_path / "encoders")
    config = json.loads((tmp_path / "encoders" / "config.json").read_text())
    assert sorted(zip(config["guidance_types"], config["guidance_input_channels"], strict=True)) == [
        ("music", 3), ("pose", 5)
    ]  # fmt: skip


@pytest.mark.parametrize("part", ["unet", "motion_modules", "reference_unet", "guidance_encoders.pose"])
def test_another_base_is_refused_by_the_part_that_differs(base_dir, tmp_path, part):
    save_lora(trained(base_dir), tmp_path / "one")
    other = ChampModel.from_pretrained(base_dir)
    inside = {"motion_modules": ".motion_modules.", "guidance_encoders.pose": ".encoders.pose."}
    name = next(
        name for name, _ in other.named_parameters()
        if name.startswith(part.split(".")[0].replace("motion_modules", "unet"))
        and inside.get(part, "") in name and (part != "unet" or ".motion" not in name)
    )  # fmt: skip
    with torch.no_grad():
        other.get_parameter(name).view(-1)[0] += 1
    with pytest.raises(ModelError, match=rf"another base: this model has other weights in its {part}:"):
        load_lora(other, tmp_path / "one")


def test_a_base_of_another_size_and_one_without_motion_modules_are_refused(base_dir, make_model, tmp_path):
    save_lora(trained(base_dir), tmp_path / "one")
    still = make_model(motion_modules=False)
    with pytest.raises(ModelError, match="another base: this model has"):
        load_lora(still, tmp_path / "one")


def test_what_is_no_lora_of_ours_is_one_line(base_dir, tmp_path):
    model = ChampModel.from_pretrained(base_dir)
    with pytest.raises(ModelError, match="no pytorch_lora_weights.safetensors: give the final/"):
        load_lora(model, tmp_path)
    save_file({"unet.mid_block.lora_A.weight": torch.zeros(1)}, tmp_path / LORA_FILE)
    with pytest.raises(ModelError, match="it has no 'lora_adapter_metadata'"):
        load_lora(model, tmp_path)
    (tmp_path / LORA_FILE).write_bytes(b"not safetensors")
    with pytest.raises(ModelError, match="cannot be read"):
        load_lora(model, tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("unet.r", -1, "cannot be read: rank -1, alpha 4 and dropout 0 are no adapter's: copy it again"),
        ("unet.lora_alpha", float("nan"), "cannot be read: rank 2, alpha nan and"),
        ("unet.lora_alpha", "x", "cannot be read: could not convert string to float"),
        ("unet.lora_dropout", None, "cannot be read: float"),
        ("unet.target_modules", [], "cannot be read: target_modules is no list of layers"),
        ("unet.target_modules", ["nowhere"], "its weights are not those that its configuration describes"),
        ("base", {"unet": 5}, "cannot be read: 'int' object is not subscriptable"),
    ],
)
def test_broken_facts_in_the_file_are_one_line(base_dir, tmp_path, field, value, message):
    """Weights alone do not show them: with an alpha of NaN, every frame would be."""
    save_lora(trained(base_dir), tmp_path)
    with safe_open(tmp_path / LORA_FILE, "pt") as file:
        facts = file.metadata()
    if field == "base":
        facts["base_digest"] = json.dumps(value)
    else:
        config = json.loads(facts["lora_adapter_metadata"]) | {field: value}
        facts["lora_adapter_metadata"] = json.dumps(config)
    save_file(load_file(tmp_path / LORA_FILE), tmp_path / LORA_FILE, metadata=facts)
    with pytest.raises(ModelError, match=f"LoRA .*{LORA_FILE}: {message}"):
        load_lora(ChampModel.from_pretrained(base_dir), tmp_path)
