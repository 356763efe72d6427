"""Our model is CHAMP: equal to tensors recorded from the original code, at each level of gradient
checkpointing.

The recordings lie beside the repository (../shared/golden) and not in it; without them these tests are
skipped and `test_textbook.py` is what remains.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from models import ChampModel, create_guidance_encoders
from models.lora import LoraSettings, add_lora, lora_state, merge_lora
from models.recomputation import CHECKPOINTING_LEVELS

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
TYPES = ["depth", "normal", "dwpose"]
TOLERANCE = 1e-4

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"no recorded tensors of the original in {GOLDEN}"
)


def load_model(motion_modules: bool) -> ChampModel:
    encoders = create_guidance_encoders(TYPES, [3, 3, 3], 32, block_out_channels=(16, 32, 64, 32))
    return ChampModel.from_champ_checkpoint(GOLDEN / "base", GOLDEN / "official", encoders, motion_modules)


def frames_second(tensor: torch.Tensor) -> torch.Tensor:
    """The original's [B, C, F, h, w] and ours [B, F, C, h, w] into each other."""
    return tensor.transpose(1, 2)


def split_guidance(guidance: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(TYPES, frames_second(guidance).split(3, dim=2), strict=True))


def our_name(name: str) -> str:
    """The original's parameter name in our model."""
    component, key = name.split(".", 1)
    if component == "denoising_unet":
        key = key.replace(".temporal_transformer.", ".")
        for theirs, ours in (
            (".attention_blocks.0.", ".attn1."),
            (".attention_blocks.1.", ".attn2."),
            (".norms.0.", ".norm1."),
            (".norms.1.", ".norm2."),
            (".ff_norm.", ".norm3."),
        ):
            key = key.replace(theirs, ours) if ".motion_modules." in key else key
        return f"unet.{key}"
    if component.startswith("guidance_encoder_"):
        guidance_type = component.removeprefix("guidance_encoder_")
        return f"guidance_encoders.encoders.{guidance_type}.{key.replace('attentions.5.', 'attention.')}"
    return name


def worst(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()


CASES = {
    "s2_all_bank32": {"motion_modules": True, "inputs": "s2_all_bank32", "with_reference": True},
    "s2_all_uncond": {"motion_modules": True, "inputs": "s2_all_bank32", "with_reference": False},
    "s1_bank32": {"motion_modules": False, "inputs": "s1_bank32", "with_reference": True},
}


@pytest.mark.parametrize("checkpointing", CHECKPOINTING_LEVELS)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_original(case, checkpointing, record_property):
    settings = CASES[case]
    model = load_model(settings["motion_modules"])
    model.enable_gradient_checkpointing(checkpointing)
    inputs = load_file(GOLDEN / "cases" / f"{settings['inputs']}.inputs.safetensors")
    outputs = load_file(GOLDEN / "cases" / f"{case}.outputs.safetensors")
    norms = json.loads((GOLDEN / "cases" / f"{case}.grad_norms.json").read_text())
    seen = record_blocks(model, [key.removeprefix("den.") for key in outputs if key.startswith("den.")])

    guidance = split_guidance(inputs["guidance"])
    tokens, reference = inputs["clip_image_embeds"], inputs["ref_image_latents"]
    features = model.encode_guidance(guidance, (16, 16))
    bank = model.encode_reference(reference, tokens)
    mask = torch.full((2,), settings["with_reference"])
    noisy_latents = frames_second(outputs["noisy_latents"])
    prediction = model.denoise(noisy_latents, inputs["timesteps"], tokens, bank, features, mask)
    error = frames_second(outputs["target"]) - prediction
    loss = (error.square().mean(dim=(1, 2, 3, 4)) * outputs["mse_loss_weights"]).mean()
    loss.backward()

    errors = {"model_pred": worst(frames_second(prediction), outputs["model_pred"])}
    errors["loss"] = worst(loss.detach()[None], outputs["loss"])
    errors["guidance_fea"] = worst(frames_second(features.spatial), outputs["guidance_fea"])
    for name in TYPES if checkpointing == "none" else []:
        feature = model.encode_guidance({name: guidance[name]}, (16, 16)).spatial
        errors[f"guidance_fea.{name}"] = worst(frames_second(feature), outputs[f"guidance_fea.{name}"])
    for key in (key for key in outputs if key.startswith("bank.")):
        name = key.removeprefix("bank.") + ".attn1.processor"
        errors[key] = worst(bank[name], outputs[key])
    for name, value in seen.items():
        errors[f"den.{name}"] = worst(value, outputs[f"den.{name}"])
    gradient_error = compare_gradients(model, outputs, norms)

    record_property("worst_error", max(errors.values()))
    print(
        f"{case}: worst error {max(errors.values()):.1e}, worst relative gradient error {gradient_error:.1e}"
    )
    assert max(errors.values()) < TOLERANCE, errors
    assert gradient_error < TOLERANCE


def record_blocks(model: ChampModel, names: list[str]) -> dict[str, torch.Tensor]:
    """Outputs of the denoising UNet's blocks, filled in by its next forward, in the original's layout."""
    seen = {}

    def record(name: str):
        def hook(module, arguments, output):
            value = (output[0] if isinstance(output, tuple) else output).detach()
            if value.ndim == 4 and name not in seen:  # a checkpointed block runs twice
                seen[name] = frames_second(value.unflatten(0, (2, -1)))
            elif value.ndim == 2:
                seen[name] = value

        return hook

    for name in names:
        model.unet.get_submodule(name).register_forward_hook(record(name))
    return seen


def compare_gradients(model: ChampModel, outputs: dict, norms: dict[str, float]) -> float:
    """The worst gradient error relative to the largest gradient, over stored gradients and all norms."""
    parameters = dict(model.named_parameters())
    largest_norm = max(norms.values())
    relative = [0.0]
    for name, norm in norms.items():
        gradient = parameters[our_name(name)].grad
        # Ours are left without a gradient where the original's is zero: attention to a single image token.
        our_norm = 0.0 if gradient is None else gradient.norm().item()
        relative.append(abs(our_norm - norm) / largest_norm)
    for key in (key for key in outputs if key.startswith("grad.")):
        gradient = parameters[our_name(key.removeprefix("grad."))].grad
        relative.append(worst(gradient, outputs[key]) / outputs[key].abs().max().item())
    return max(relative)


def test_untrainable_parameters_have_no_gradient_in_the_original():
    norms = json.loads((GOLDEN / "cases" / "s2_all_bank32.grad_norms.json").read_text())
    norms = {our_name(name): norm for name, norm in norms.items()}
    model = load_model(motion_modules=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(norms.get(name, 0.0) < 1e-8 for name in model.untrainable_names)
    assert all(norms[name] > 0.0 for name in trained)


def test_classifier_free_guidance_call():
    case = load_file(GOLDEN / "cases" / "cfg_read.safetensors")
    model = load_model(motion_modules=True)
    tokens = case["encoder_hidden_states"]  # [unconditional | conditional]: zeros, then the image's
    with torch.no_grad():
        features = model.encode_guidance(split_guidance(case["guidance"]), (16, 16))
        features = features._replace(spatial=features.spatial.expand(2, -1, -1, -1, -1))
        bank = model.encode_reference(
            case["ref_image_latents"].expand(2, -1, -1, -1), tokens[1:].expand(2, -1, -1)
        )
        prediction = model.denoise(
            frames_second(case["latents"]).expand(2, -1, -1, -1, -1),
            case["timestep"].expand(2),
            tokens,
            bank,
            features,
            reference_mask=torch.tensor([False, True]),
        )
    error = worst(frames_second(prediction), case["pred_bank32"])
    print(f"cfg_read: worst error {error:.1e}")
    assert error < TOLERANCE


def test_a_merged_model_in_the_official_layout(tmp_path):
    """The original's weights with the adapters' changes added, and the same prediction as unmerged."""
    model = load_model(motion_modules=True)
    add_lora(model, LoraSettings(rank=2, alpha=4))
    torch.manual_seed(0)
    state = {key: torch.nn.init.normal_(weight, std=0.1) for key, weight in lora_state(model).items()}
    case = load_file(GOLDEN / "cases" / "cfg_read.safetensors")
    unmerged = predict(model, case)
    merge_lora(model)
    model.save_champ_checkpoint(tmp_path)

    num_changed = 0
    for path in (GOLDEN / "official").glob("*.pth"):
        original = torch.load(path, weights_only=True)
        written = torch.load(tmp_path / path.name, weights_only=True)
        assert written.keys() == original.keys()
        for key, value in original.items():
            component = path.stem.replace("motion_module", "denoising_unet")
            layer = our_name(f"{component}.{key}").removesuffix(".weight")
            if f"{layer}.lora_A.weight" not in state or key.endswith(".bias"):
                assert torch.equal(written[key], value), key
                continue
            change = 2 * state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"]
            torch.testing.assert_close(written[key], value + change, rtol=0, atol=1e-6)
            num_changed += 1
    assert num_changed == len(state) / 2
    merged = ChampModel.from_champ_checkpoint(GOLDEN / "base", tmp_path, model.guidance_encoders)
    assert worst(predict(merged, case), unmerged) < 1e-5
    assert worst(frames_second(unmerged), case["pred_bank32"][1:]) > 1e-2


@torch.no_grad()
def predict(model: ChampModel, case: dict[str, torch.Tensor]) -> torch.Tensor:
    tokens = case["clip_image_embeds"]
    bank = model.encode_reference(case["ref_image_latents"], tokens)
    features = model.encode_guidance(split_guidance(case["guidance"]), (16, 16))
    latents, timestep = frames_second(case["latents"]), case["timestep"].expand(1)
    return model.denoise(latents, timestep, tokens, bank, features)


@pytest.mark.parametrize("through_final", [False, True])
def test_official_folder_in_official_folder_out(tmp_path, through_final):
    """The same keys and the same bits, also when the model was our own final/ folder in between."""
    model = load_model(motion_modules=True)
    if through_final:
        model.save_pretrained(tmp_path / "final")
        model = ChampModel.from_pretrained(tmp_path / "final")
    model.save_champ_checkpoint(tmp_path / "written")
    names = sorted(path.name for path in (GOLDEN / "official").glob("*.pth"))
    assert sorted(path.name for path in (tmp_path / "written").iterdir()) == names
    for name in names:
        original = torch.load(GOLDEN / "official" / name, weights_only=True)
        written = torch.load(tmp_path / "written" / name, weights_only=True)
        assert written.keys() == original.keys()
        assert all(torch.equal(written[key], value) for key, value in original.items())
