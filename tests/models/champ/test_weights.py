"""Saving and loading in every layout: the same bits back, and errors that name what is wrong."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from models import ChampModel, ModelError, create_guidance_encoders, model_files
from models.champ import weights


def same_bits(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[key]) for key, value in ours.items()
    )


def part_of(model, prefix: str) -> dict:
    return {key: value for key, value in model.state_dict().items() if key.startswith(prefix)}


@pytest.mark.parametrize("motion_modules", [True, False])
def test_own_layout_round_trip(make_model, make_inputs, tmp_path, motion_modules):
    model, inputs = make_model(motion_modules=motion_modules), make_inputs()
    model.guidance_encoders.encoders["music"].set_feature_statistics(torch.arange(3.0), torch.arange(3.0) + 1)
    model.save_pretrained(tmp_path)
    loaded = ChampModel.from_pretrained(tmp_path)
    assert same_bits(loaded.state_dict(), model.state_dict())
    torch.testing.assert_close(loaded(**inputs), model(**inputs), atol=0, rtol=0)
    assert loaded.has_motion_modules == motion_modules
    assert loaded.pretrained_names == {name for name, _ in loaded.named_parameters()}
    for name in weights.COMPONENTS:
        assert (tmp_path / name / "config.json").is_file()
        assert (tmp_path / name / "diffusion_pytorch_model.safetensors").is_file()


def test_a_diffusers_pipeline_loads_the_components_by_name(make_model, tmp_path):
    class ComponentsPipeline(DiffusionPipeline):
        def __init__(self, unet, reference_unet, guidance_encoders):
            super().__init__()
            self.register_modules(
                unet=unet, reference_unet=reference_unet, guidance_encoders=guidance_encoders
            )

    model = make_model()
    parts = {name: getattr(model, name) for name in weights.COMPONENTS}
    ComponentsPipeline(**parts).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["models", "MotionDenoisingUNet"]
    assert index["guidance_encoders"] == ["models", "GuidanceEncoders"]
    pipeline = ComponentsPipeline.from_pretrained(tmp_path)
    assert same_bits(ChampModel(**pipeline.components).state_dict(), model.state_dict())
    assert same_bits(ChampModel.from_pretrained(tmp_path).state_dict(), model.state_dict())


@pytest.mark.parametrize("motion_modules", [True, False])
@pytest.mark.parametrize("width", [32, 24])  # without and with a projection of the pose
def test_official_layout_round_trip(make_model, encoders, tiny_base, tmp_path, motion_modules, width):
    model = make_model(motion_modules=motion_modules, width=width)
    model.save_champ_checkpoint(tmp_path)
    fresh = create_guidance_encoders(
        ["music", "pose"], [3, 5], width, block_out_channels=(8, 8, 16, 32), num_attention_heads=2
    )
    loaded = ChampModel.from_champ_checkpoint(tiny_base, tmp_path, fresh, motion_modules)
    ours = {key: value for key, value in loaded.state_dict().items() if ".conv_norm_out." not in key}
    assert same_bits(ours, {key: model.state_dict()[key] for key in ours})
    assert loaded.pretrained_names == {name for name, _ in loaded.named_parameters()}


def test_files_are_those_of_the_release(make_model, tmp_path):
    make_model().save_champ_checkpoint(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        "denoising_unet.pth",
        "guidance_encoder_music.pth",
        "guidance_encoder_pose.pth",
        "motion_module.pth",
        "reference_unet.pth",
    ]
    motion = torch.load(tmp_path / "motion_module.pth", weights_only=True)
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    assert f"{block}.attention_blocks.1.pos_encoder.pe" in motion
    assert all(".motion_modules." in key for key in motion)
    assert not any(
        ".motion_modules." in key for key in torch.load(tmp_path / "denoising_unet.pth", weights_only=True)
    )


def test_weights_of_the_release_that_never_run_are_kept(make_model, encoders, tiny_base, tmp_path):
    model = make_model()
    model.save_champ_checkpoint(tmp_path / "official")
    path = tmp_path / "official" / "guidance_encoder_pose.pth"
    state = torch.load(path, weights_only=True)
    state |= {"attentions.0.norm.weight": torch.rand(8), "guidance_attention.proj_in.bias": torch.rand(32)}
    torch.save(state, path)
    loaded = ChampModel.from_champ_checkpoint(tiny_base, tmp_path / "official", encoders())
    names = {name for name, _ in loaded.guidance_encoders.named_parameters()}
    assert not any("attentions.0" in name or "guidance_attention" in name for name in names)
    loaded.save_pretrained(tmp_path / "final")
    again = ChampModel.from_pretrained(tmp_path / "final")
    third = ChampModel.from_champ_checkpoint(tiny_base, tmp_path / "final", encoders())
    for index, source in enumerate((loaded, again, third)):
        source.save_champ_checkpoint(tmp_path / f"written{index}")
        written = torch.load(tmp_path / f"written{index}" / "guidance_encoder_pose.pth", weights_only=True)
        assert same_bits(written, state)


def test_an_image_stage_is_followed_by_a_motion_stage(make_model, encoders, make_inputs, tmp_path):
    image = make_model(motion_modules=False)
    image.save_pretrained(tmp_path)
    motion = ChampModel.from_champ_checkpoint("unused", tmp_path, encoders(), motion_modules=True)
    assert motion.has_motion_modules
    inputs = make_inputs()
    torch.testing.assert_close(motion(**inputs), image(**inputs))  # fresh motion modules are the identity
    names = {name for name, _ in motion.named_parameters()}
    assert names - motion.pretrained_names == motion.motion_parameter_names() != set()
    motion.save_pretrained(tmp_path / "motion")
    back = ChampModel.from_champ_checkpoint("unused", tmp_path / "motion", encoders(), motion_modules=False)
    assert same_bits(back.state_dict(), image.state_dict())


def test_guidance_types_may_be_added_and_left_out(make_model, encoders, tmp_path, caplog):
    saved = make_model()
    saved.save_pretrained(tmp_path)
    model = ChampModel.from_champ_checkpoint(
        "unused", tmp_path, encoders(types=["pose", "depth"], channels=[5, 3])
    )
    assert "depth" in caplog.text
    assert same_bits(
        part_of(model, "guidance_encoders.encoders.pose"), part_of(saved, "guidance_encoders.encoders.pose")
    )
    untrained = {name for name, _ in model.named_parameters()} - model.pretrained_names
    assert untrained and all(name.startswith("guidance_encoders.encoders.depth.") for name in untrained)


def animate_diff_file(tiny_base, encoders, path, *, edit=lambda state: state):
    """Motion modules with random weights in AnimateDiff's layout; their model."""
    model = ChampModel.from_pretrained_sd(tiny_base, encoders())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".motion_modules." in name:
                parameter.normal_()
    state = edit(weights.motion_keys_to_champ(model.unet.state_dict()))
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return model


@pytest.mark.parametrize("name", ["mm.ckpt", "mm.pth", "mm.safetensors"])
def test_motion_module_files(tiny_base, encoders, tmp_path, name):
    def edit(state):
        if name == "mm.ckpt":  # as training scripts write it
            return {"state_dict": {f"module._orig_mod.{key}": value for key, value in state.items()}}
        return state

    written = animate_diff_file(tiny_base, encoders, tmp_path / name, edit=edit)
    model = ChampModel.from_pretrained_sd(tiny_base, encoders(), tmp_path / name)
    assert same_bits(model.unet.state_dict(), written.unet.state_dict())
    fresh = {name for name, _ in model.named_parameters()} - model.pretrained_names
    assert all(name.startswith("guidance_encoders.") for name in fresh)


def test_motion_modules_in_half_precision_without_a_middle_block(tiny_base, encoders, tmp_path, caplog):
    """AnimateDiff's third version."""

    def edit(state):
        state = {key: value.half() for key, value in state.items() if not key.startswith("mid_block.")}
        return state | {"animatediff_config": {"use_motion_module": True}}

    written = animate_diff_file(tiny_base, encoders, tmp_path / "mm.ckpt", edit=edit)
    model = ChampModel.from_pretrained_sd(tiny_base, encoders(), tmp_path / "mm.ckpt")
    assert "middle block" in caplog.text
    assert not model.unet.mid_block.motion_modules[0].proj_out.weight.any()
    ours, theirs = part_of(model, "unet.up_blocks.0"), part_of(written, "unet.up_blocks.0")
    assert all(
        torch.equal(value, theirs[key].half().float()) for key, value in ours.items() if "motion" in key
    )
    untrained = {name for name, _ in model.named_parameters()} - model.pretrained_names
    assert {name.split(".")[1] for name in untrained if name.startswith("unet.")} == {"mid_block"}


def test_motion_modules_of_24_positions(tiny_base, encoders, make_inputs, tmp_path):
    """AnimateDiff's first version."""

    def edit(state):
        return {key: value[:, :24] if key.endswith(".pe") else value for key, value in state.items()}

    animate_diff_file(tiny_base, encoders, tmp_path / "mm.ckpt", edit=edit)
    model = ChampModel.from_pretrained_sd(tiny_base, encoders(), tmp_path / "mm.ckpt")
    with pytest.raises(ModelError, match="25 frames.*24"):
        model(**make_inputs(num_clips=1, num_frames=25))


def test_weights_beside_motion_modules_are_left_out(tiny_base, encoders, tmp_path, caplog):
    """A checkpoint of AnimateDiff's own training holds the whole UNet."""

    def edit(state):
        state = {f"module.{key}": value for key, value in state.items()}
        return {"epoch": 1, "state_dict": state | {"module.conv_in.weight": torch.zeros(32, 4, 3, 3)}}

    animate_diff_file(tiny_base, encoders, tmp_path / "checkpoint.ckpt", edit=edit)
    model = ChampModel.from_pretrained_sd(tiny_base, encoders(), tmp_path / "checkpoint.ckpt")
    assert "its 1 weights outside motion modules are left out" in caplog.text
    assert torch.equal(model.unet.conv_in.weight, model.reference_unet.conv_in.weight)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("down_blocks.0.motion_modules.0.attention_blocks.0.processor.to_q_lora.down.weight", "motion LoRA"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("down_blocks.2.motion_modules.0.norm.weight", "UNet with 3 levels, this one has 2"),
    ],
)
def test_files_beside_animate_diffs_motion_modules_are_named(tiny_base, encoders, tmp_path, key, message):
    path = tmp_path / "mm.ckpt"
    animate_diff_file(tiny_base, encoders, path, edit=lambda state: state | {key: torch.zeros(2)})
    with pytest.raises(ModelError, match=message):
        ChampModel.from_pretrained_sd(tiny_base, encoders(), path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda state: dict(list(state.items())[1:]),
            "1 keys missing .down_blocks.0.motion_modules.0.norm.weight",
        ),
        (lambda state: state | {"down_blocks.0.motion_modules.0.extra": torch.zeros(1)}, "1 keys unexpected"),
        (lambda state: {key: value[:-1] for key, value in state.items()}, "keys of another shape"),
        (
            lambda state: {"conv_in.weight": torch.zeros(1)},
            "holds no motion modules, it is no model known here",
        ),
    ],
)
def test_motion_module_files_that_do_not_fit(tiny_base, encoders, tmp_path, edit, message):
    def keep_positions(state):
        tables = {key: value for key, value in state.items() if key.endswith(".pe")}
        edited = edit({key: value for key, value in state.items() if key not in tables})
        return edited | tables if "conv_in.weight" not in edited else edited

    animate_diff_file(tiny_base, encoders, tmp_path / "mm.pth", edit=keep_positions)
    with pytest.raises(ModelError, match=message):
        ChampModel.from_pretrained_sd(tiny_base, encoders(), tmp_path / "mm.pth")


def test_other_peoples_files_run_no_code(tiny_base, encoders, tmp_path):
    torch.save({"weights": pytest.raises}, tmp_path / "mm.pth")
    with pytest.raises(ModelError, match="cannot be read"):
        ChampModel.from_pretrained_sd(tiny_base, encoders(), tmp_path / "mm.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="broken.safetensors cannot be read"):
        ChampModel.from_pretrained_sd(tiny_base, encoders(), tmp_path / "broken.safetensors")


@pytest.mark.parametrize("safe", [True, False])
def test_half_precision_bases_are_loaded_in_float32(tiny_base, encoders, tmp_path, safe):
    base = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet").half()
    base.save_pretrained(tmp_path / "unet", safe_serialization=safe)
    model = ChampModel.from_pretrained_sd(tmp_path, encoders())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.unet.conv_in.weight, base.conv_in.weight.float())


def test_a_variant_must_be_asked_for(tiny_base, encoders, tmp_path):
    base = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")
    base.save_pretrained(tmp_path / "unet", variant="fp16")
    with pytest.raises(ModelError, match="--variant fp16"):
        ChampModel.from_pretrained_sd(tmp_path, encoders())
    assert ChampModel.from_pretrained_sd(tmp_path, encoders(), variant="fp16").has_motion_modules


@pytest.mark.parametrize("place", ["snapshots/133a221b", "stable-diffusion-v1-5"])
def test_a_folder_around_the_model_names_the_folder_to_give(tiny_base, encoders, tmp_path, place):
    """The hub's own cache (models--NAME), and what an archive of a folder makes."""
    shutil.copytree(tiny_base, tmp_path / "models--sd" / place)
    with pytest.raises(ModelError, match=f"has no unet/config.json: give .*/models--sd/{place}$"):
        ChampModel.from_pretrained_sd(tmp_path / "models--sd", encoders())


def test_paths_that_do_not_exist(tiny_base, encoders, tmp_path):
    for path in (tmp_path / "missing", "./missing", "models/missing"):
        with pytest.raises(ModelError, match="missing does not exist"):
            ChampModel.from_pretrained_sd(path, encoders())
    with pytest.raises(ModelError, match="mm.ckpt does not exist"):
        ChampModel.from_pretrained_sd(tiny_base, encoders(), tmp_path / "mm.ckpt")
    with pytest.raises(ModelError, match="unet/config.json"):
        ChampModel.from_pretrained_sd(tmp_path, encoders())
    with pytest.raises(ModelError, match="is not a saved CHAMP model"):
        ChampModel.from_pretrained(tmp_path)
    with pytest.raises(ModelError, match="denoising_unet.pth"):
        ChampModel.from_champ_checkpoint(tiny_base, tmp_path, encoders())
    with pytest.raises(ModelError, match="does not exist"):
        ChampModel.from_champ_checkpoint(tiny_base, tmp_path / "missing", encoders())


def test_keys_of_saved_models_are_checked(make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    path = tmp_path / "guidance_encoders" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    save_file({key: value for key, value in state.items() if "pose.conv_in.bias" not in key}, path)
    with pytest.raises(ModelError, match="1 keys missing .*pose.conv_in.bias"):
        ChampModel.from_pretrained(tmp_path)
    save_file(state | {"extra": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="1 keys unexpected .extra"):
        ChampModel.from_pretrained(tmp_path)
    save_file(state | {"encoders.pose.conv_in.bias": torch.zeros(3)}, path)
    with pytest.raises(ModelError, match="guidance_encoders.*conv_in.bias"):
        ChampModel.from_pretrained(tmp_path)


def test_bases_that_are_not_stable_diffusion_are_refused(tiny_base, encoders, tmp_path):
    config = dict(UNet2DConditionModel.load_config(tiny_base / "unet"), num_class_embeds=3)
    UNet2DConditionModel.from_config(config).save_pretrained(tmp_path / "unet")
    with pytest.raises(ModelError, match="num_class_embeds=3"):
        ChampModel.from_pretrained_sd(tmp_path, encoders())
    config = dict(UNet2DConditionModel.load_config(tiny_base / "unet"), in_channels=9)
    UNet2DConditionModel.from_config(config).save_pretrained(tmp_path / "unet")
    with pytest.raises(ModelError, match="in_channels=9; CHAMP needs 4"):
        ChampModel.from_pretrained_sd(tmp_path, encoders())
    config = dict(UNet2DConditionModel.load_config(tiny_base / "unet"), block_out_channels=[32, 48])
    UNet2DConditionModel.from_config(config).save_pretrained(tmp_path / "unet")
    with pytest.raises(ModelError, match="divisible by 32.*48"):
        ChampModel.from_pretrained_sd(tmp_path, encoders())
    assert not ChampModel.from_pretrained_sd(tmp_path, encoders(), motion_modules=False).has_motion_modules


def test_the_old_hub_id_is_mapped(caplog):
    assert model_files.local_component("runwayml/stable-diffusion-v1-5", "unet") == (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "unet",
    )
    assert "gone from the hub" in caplog.text
    assert model_files.local_component("someone/model", "vae") == ("someone/model", "vae")
