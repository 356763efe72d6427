"""One file with a whole model: every weight comes back; any other file is called by its name."""

import pickle
import re
import sys
import types

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file

from models import ChampModel, FrozenEncoders, ModelError, frozen, single_file
from models.model_files import load_component, local_component

from .conftest import TOKEN_WIDTH, UNET_CONFIG

VAE_CONFIG = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
UNET_NAMES = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET_NAMES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_NAMES = {
    "conv_norm_out": "norm_out",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "down_blocks": "down",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "resnets": "block",
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def original_unet_key(key: str, layers: int) -> str:
    """Return the name that Stable Diffusion's own files give to a UNet weight of diffusers' name."""
    for ours, theirs in UNET_NAMES.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs)
    part, rest = key.split(".", 1)
    if part == "mid_block":
        kind, index, rest = rest.split(".", 2)
        place = f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}"
    else:
        level, kind, index, rest = rest.split(".", 3)
        first, index = int(level) * (layers + 1), int(index)
        place = {
            "downsamplers": f"input_blocks.{first + layers + 1}.0",
            "upsamplers": f"output_blocks.{first + layers}.2",
        }.get(kind)
        if place is None:
            half = f"input_blocks.{first + index + 1}" if part == "down_blocks" else None
            place = f"{half or f'output_blocks.{first + index}'}.{1 if kind == 'attentions' else 0}"
    if kind == "resnets":
        name, end = rest.split(".")
        return f"{place}.{RESNET_NAMES[name]}.{end}"
    return f"{place}.{rest.replace('conv.', 'op.')}" if kind == "downsamplers" else f"{place}.{rest}"


def original_unet(unet: UNet2DConditionModel) -> dict:
    state, layers = unet.state_dict(), unet.config.layers_per_block
    named = {original_unet_key(key, layers): value for key, value in state.items()}
    # Where no attention comes before it, the upsampler is the second part of its block.
    attended = {key.split(".1.")[0] for key in named if re.match(r"output_blocks\.\d+\.1\.", key)}
    named = {
        key if key.split(".2.conv.")[0] in attended else key.replace(".2.conv.", ".1.conv."): value
        for key, value in named.items()
    }
    assert len(named) == len(state)
    return {f"model.diffusion_model.{key}": value for key, value in named.items()}


def original_vae(vae: AutoencoderKL) -> dict:
    named, last = {}, len(vae.config.block_out_channels) - 1
    for key, value in vae.state_dict().items():
        key = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{last - int(found[1])}", key)
        for ours, theirs in VAE_NAMES.items():
            key = re.sub(rf"(^|\.){re.escape(ours)}\.", rf"\1{theirs}.", key)
        is_matrix = ".attn_1." in key and value.ndim == 2
        named[key] = value[:, :, None, None] if is_matrix else value
    return named


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET_CONFIG), AutoencoderKL(**VAE_CONFIG)


@pytest.fixture
def whole(parts, tmp_path, monkeypatch):
    """The state dict of a whole checkpoint; a tiny model takes the place of Stable Diffusion 1.5."""
    for name, part in zip(("unet", "vae"), parts, strict=True):
        part.save_config(tmp_path / "tiny" / name)
    monkeypatch.setattr(single_file, "CONFIGURATIONS", tmp_path / "tiny")
    unet, vae = parts
    return {
        **original_unet(unet),
        **{f"first_stage_model.{key}": value for key, value in original_vae(vae).items()},
        "first_stage_model.loss.logvar": torch.zeros(()),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(3),
        "betas": torch.zeros(1000),
    }


def write(state: dict, path):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def load(path, name: str):
    return load_component(lambda: None, *local_component(path, name))


def same_bits(ours, theirs, dtype=torch.float32) -> bool:
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[key].to(dtype).float()) for key, value in ours.items()
    )


def assert_loads(path, parts, dtype=torch.float32):
    for name, part in zip(("unet", "vae"), parts, strict=True):
        loaded = load(path, name)
        assert same_bits(loaded, part, dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert loaded.config.get("scaling_factor", 0.18215) == 0.18215


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_safetensors_file_round_trip(whole, parts, tmp_path, dtype):
    state = {key: value.to(dtype) for key, value in whole.items()}
    assert_loads(write(state, tmp_path / "v1-5-pruned-emaonly.safetensors"), parts, dtype)


class ModelCheckpoint:
    """Of a training program that is not installed where the file is read."""


ModelCheckpoint.__module__ = "pytorch_lightning.callbacks.model_checkpoint"
ModelCheckpoint.__qualname__ = "ModelCheckpoint"


def test_a_ckpt_file_as_lightning_writes_it(whole, parts, tmp_path, monkeypatch):
    callbacks = {ModelCheckpoint: {"best_model_score": np.float64(0.5)}}
    with monkeypatch.context() as while_written:
        words = ModelCheckpoint.__module__.split(".")
        for length in range(1, len(words) + 1):
            name = ".".join(words[:length])
            while_written.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[ModelCheckpoint.__module__].ModelCheckpoint = ModelCheckpoint
        checkpoint = {"epoch": 3, "state_dict": whole, "callbacks": callbacks}
        path = write(checkpoint, tmp_path / "v1-5-pruned.ckpt")
    assert_loads(path, parts)
    torch.save({"state_dict": {"state_dict": whole}}, path, _use_new_zipfile_serialization=False)
    assert_loads(path, parts)


def test_the_model_and_the_frozen_encoders_take_it(whole, parts, encoders, tmp_path, caplog, monkeypatch):
    path = write(whole, tmp_path / "sd15.safetensors")
    model = ChampModel.from_pretrained_sd(path, encoders())
    assert same_bits(model.reference_unet, parts[0])
    assert torch.equal(model.unet.conv_in.weight, parts[0].conv_in.weight)
    model.save_pretrained(tmp_path / "final")
    assert same_bits(ChampModel.from_pretrained(tmp_path / "final"), model)
    assert caplog.text == ""
    monkeypatch.setattr(frozen, "DEFAULT_IMAGE_ENCODER", str(tmp_path / "clip"))
    with pytest.raises(ModelError, match="clip does not exist"):
        FrozenEncoders.from_pretrained(path)
    assert "--image_encoder_name_or_path" in caplog.text


def test_vae_files(whole, parts, tmp_path):
    vae = parts[1]
    bare = original_vae(vae) | {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(())}
    old_names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    old = vae.state_dict()
    for ours, theirs in old_names.items():
        old = {key.replace(ours, theirs): value for key, value in old.items()}
    files = {
        "vae-ft-mse-840000-ema-pruned.safetensors": bare,
        "vae-ft-mse.ckpt": {"state_dict": bare},
        "anime.vae.pt": bare,
        "diffusion_pytorch_model.safetensors": vae.state_dict(),
        "diffusion_pytorch_model.bin": old,
    }
    for name, state in files.items():
        assert same_bits(load(write(state, tmp_path / name), "vae"), vae), name


UNET, VAE = "model.diffusion_model.", "first_stage_model."


def unet_only(state: dict, prefix: str = UNET) -> dict:
    return {prefix + key.removeprefix(UNET): value for key, value in state.items() if key.startswith(UNET)}


def widened(state: dict, key_end: str, axis: int, width: int) -> dict:
    def wide(value):
        return torch.zeros([width if index == axis else size for index, size in enumerate(value.shape)])

    return {key: wide(value) if key.endswith(key_end) else value for key, value in state.items()}


def named(*keys: str):
    return lambda state: {key: torch.zeros(2, 2) for key in keys}


OTHER_FILES = {
    "inpainting.*9 input channels": lambda s: widened(s, "input_blocks.0.0.weight", 1, 9),
    "InstructPix2Pix": lambda s: widened(s, "input_blocks.0.0.weight", 1, 8),
    "Stable Diffusion 2.x": lambda s: widened(s, "attn2.to_k.weight", 1, 1024),
    "Stable Diffusion XL model": lambda s: widened(s, "attn2.to_k.weight", 1, 2048),
    "is a LoRA": named("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"),
    "textual inversion": named("emb_params"),
    "a ControlNet": named("control_model.time_embed.0.weight"),
    "Stable Diffusion 3 or Flux": named(f"{UNET}joint_blocks.0.x_block.attn.qkv.weight"),
    "motion modules .--motion_module_path": named("down_blocks.0.motion_modules.0.norm.weight"),
    "a bare UNet;": lambda s: unet_only(s, prefix=""),
    "a bare UNet in diffusers' layout": named("down_blocks.0.resnets.0.conv1.weight"),
    "a bare VAE .--vae_model_name_or_path": lambda s: {k: v for k, v in s.items() if k.startswith(VAE)},
    "no model known here .its keys: a.": named("a"),
    "weights of a unet where": lambda s: s | {f"{UNET}cond_proj.weight": torch.zeros(2)},
    "holds no unet of Stable Diffusion 1.5": lambda s: widened(s, "time_embed.0.weight", 0, 7),
}


@pytest.mark.parametrize("message", OTHER_FILES)
def test_other_files_are_named(whole, tmp_path, message):
    path = write(OTHER_FILES[message](whole), tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=f"other.safetensors .*({message})") as raised:
        load(path, "unet")
    assert "\n" not in str(raised.value) and "expected a Stable Diffusion 1.5 checkpoint" in str(raised.value)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (unet_only, "holds no VAE: give one by --vae_model_name_or_path"),
        (lambda s: s | {"conditioner.embedders.0.x": torch.zeros(1)}, "is a Stable Diffusion XL model"),
        (lambda s: widened(s, "decoder.conv_in.weight", 1, 16), "16 latent channels"),
        (lambda s: {"encoder.layers.0.weight": torch.zeros(2)}, "TAESD"),
        (lambda s: {"lora_te_text_model.lora_up.weight": torch.zeros(2)}, "is a LoRA"),
        (lambda s: dict(list(s.items())[:-5]), "weights of a vae where"),
    ],
)
def test_files_without_a_fitting_vae(whole, tmp_path, edit, message):
    path = write(edit(whole), tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=f"other.safetensors .*{message}"):
        load(path, "vae")


def test_a_file_is_no_image_encoder(whole, tmp_path):
    path = write(whole, tmp_path / "clip.safetensors")
    with pytest.raises(ModelError, match="image_encoder is read from a folder.*config.json"):
        FrozenEncoders.from_pretrained(path, image_encoder_name_or_path=path)


class Harmful:
    def __reduce__(self):
        return print, ("code of a file runs",)


def test_files_that_cannot_be_read(whole, tmp_path, capsys):
    torch.save({"state_dict": whole, "other": Harmful()}, tmp_path / "harmful.ckpt")
    (tmp_path / "pickled.ckpt").write_bytes(pickle.dumps(Harmful()))
    (tmp_path / "pointer.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    (tmp_path / "page.ckpt").write_text("<!DOCTYPE html><html>Sign in</html>")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    cut = write(whole, tmp_path / "cut.safetensors")
    cut.write_bytes(cut.read_bytes()[:-100])
    expected = {
        "harmful.ckpt": "Python code to run .print.*safetensors",
        "pickled.ckpt": "cannot be read",
        "pointer.safetensors": "git lfs pull",
        "page.ckpt": "a web page",
        "model.gguf": "is no file of weights: expected .*safetensors",
        "cut.safetensors": "not whole.*download it again",
        "missing.safetensors": "does not exist",
    }
    for name, message in expected.items():
        with pytest.raises(ModelError, match=f"{name} .*{message}") as raised:
            load(tmp_path / name, "unet")
        assert "\n" not in str(raised.value)
    assert capsys.readouterr().out == ""


def test_the_configurations_are_stable_diffusion_15s():
    """Numbers of weights and names of the released v1-5-pruned-emaonly file."""
    with torch.device("meta"):
        unet, vae = (
            model_class.from_config(model_class.load_config(single_file.CONFIGURATIONS, subfolder=name))
            for name, model_class in single_file.CLASSES.items()
        )
    state = original_unet(unet)
    assert (len(state), sum(value.numel() for value in state.values())) == (686, 859_520_964)
    assert state[f"{UNET}output_blocks.11.0.skip_connection.weight"].shape == (320, 640, 1, 1)
    assert state[f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].shape == (320, 768)
    assert f"{UNET}output_blocks.2.1.conv.weight" in state and f"{UNET}input_blocks.9.0.op.bias" in state
    assert (len(original_vae(vae)), sum(p.numel() for p in vae.parameters())) == (248, 83_653_863)
    assert original_vae(vae)["decoder.up.3.upsample.conv.weight"].shape == (512, 512, 3, 3)
    assert TOKEN_WIDTH != unet.config.cross_attention_dim == 768
