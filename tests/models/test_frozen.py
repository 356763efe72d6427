"""The frozen encoders: both kinds of autoencoder, the CLIP image encoder, and what they promise."""

import logging

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from models import FrozenEncoders, ModelError


def save_vae(folder, kind: str) -> None:
    torch.manual_seed(0)
    widths = (8, 8, 8, 8)
    if kind == "kl":
        vae = AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            norm_num_groups=4,
        )
    else:
        blocks = (1, 1, 1, 1)
        vae = AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=blocks,
            num_decoder_blocks=blocks,
        ).half()
    vae.save_pretrained(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Stable Diffusion folder with image_encoder/ and vae/ (tiny); the other autoencoder is in kl/."""
    folder = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=224,
        patch_size=56,
        projection_dim=24,
    )
    CLIPVisionModelWithProjection(config).half().save_pretrained(folder / "image_encoder")
    save_vae(folder / "vae", "tiny")
    save_vae(folder / "kl", "kl")
    return folder


@pytest.fixture(params=["vae", "kl"])
def frozen(request, base):
    return FrozenEncoders.from_pretrained(base, vae_model_name_or_path=base / request.param)


def test_shapes_and_properties(frozen):
    frames = torch.rand(2, 3, 3, 64, 48) * 2 - 1
    latents = frozen.encode_frames(frames)
    assert latents.shape == (2, 3, 4, 8, 6)
    assert frozen.encode_reference(frames[:, 0]).shape == (2, 4, 8, 6)
    decoded = frozen.decode_frames(latents)
    assert decoded.shape == frames.shape and decoded.abs().max() <= 1
    assert frozen.encode_image_tokens(torch.randn(2, 3, 224, 224)).shape == (2, 1, 24)
    assert (frozen.latent_factor, frozen.image_token_width) == (8, 24)
    with pytest.raises(ModelError, match="multiples of 8"):
        frozen.encode_frames(frames[..., :-1])


def test_nothing_is_trained(frozen):
    frozen.train()
    assert not any(module.training for module in frozen.modules())
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen.encode_frames(torch.zeros(1, 1, 3, 64, 64)).requires_grad


def test_scaling_and_chunks(frozen):
    frames = torch.rand(1, 5, 3, 64, 64) * 2 - 1
    factor = frozen.vae.config.scaling_factor
    encoded = frozen.vae.encode(frames[0, :1])
    mean = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    torch.testing.assert_close(frozen.encode_reference(frames[:, 0]), mean * factor)
    whole = frozen.encode_frames(frames, torch.Generator().manual_seed(0), chunk_size=5)
    parts = frozen.encode_frames(frames, torch.Generator().manual_seed(0), chunk_size=2)
    torch.testing.assert_close(parts, whole)
    decoded = frozen.decode_frames(whole, chunk_size=5)
    torch.testing.assert_close(frozen.decode_frames(whole, chunk_size=2), decoded)
    taken = []
    for name in ("encoder", "decoder"):
        getattr(frozen.vae, name).register_forward_hook(lambda _, args, __: taken.append(len(args[0])))
    frozen.cpu_pixels = 3 * 64 * 64
    torch.testing.assert_close(frozen.encode_frames(frames, torch.Generator().manual_seed(0)), whole)
    torch.testing.assert_close(frozen.decode_frames(whole), decoded)
    assert taken == [3, 2, 3, 2]
    if isinstance(frozen.vae, AutoencoderKL):
        assert not torch.equal(whole, frozen.encode_frames(frames, torch.Generator().manual_seed(1)))


def test_image_tokens_are_the_projected_embedding(frozen):
    images = torch.randn(2, 3, 224, 224)
    expected = frozen.image_encoder(images).image_embeds
    torch.testing.assert_close(frozen.encode_image_tokens(images)[:, 0], expected)


def test_another_image_encoder(base, tmp_path):
    with pytest.raises(ModelError, match="image_encoder/config.json"):
        FrozenEncoders.from_pretrained(base, image_encoder_name_or_path=tmp_path)
    direct = FrozenEncoders.from_pretrained(base, image_encoder_name_or_path=base / "image_encoder")
    assert direct.image_token_width == 24
    with pytest.raises(ModelError, match="does not exist"):
        FrozenEncoders.from_pretrained(tmp_path / "missing")


def test_a_whole_clip_model_gives_its_image_encoder(base, tmp_path, caplog):
    """As openai/clip-vit-large-patch14 is: with its text half, and from its first years with position_ids."""
    encoder = FrozenEncoders.from_pretrained(base).image_encoder
    text = {"text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.ones(())}
    text |= {"text_projection.weight": torch.ones(3, 3)}
    positions = {"vision_model.embeddings.position_ids": torch.arange(17)[None]}
    encoder.config.save_pretrained(tmp_path)
    torch.save(encoder.state_dict() | text | positions, tmp_path / "pytorch_model.bin")
    loaded = FrozenEncoders.from_pretrained(base, image_encoder_name_or_path=tmp_path).image_encoder
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in encoder.state_dict().items())
    assert "LOAD REPORT" not in caplog.text
    other_width = {"visual_projection.weight": torch.zeros(8, 16)}
    torch.save(encoder.state_dict() | other_width, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="of another shape .*visual_projection"):
        FrozenEncoders.from_pretrained(base, image_encoder_name_or_path=tmp_path)


def test_the_attention_of_an_older_vae(base, tmp_path):
    """Files of Stable Diffusion 1.5 and of sd-vae-ft-mse name it query, key, value and proj_attn."""
    vae = FrozenEncoders.from_pretrained(base, vae_model_name_or_path=base / "kl").vae
    state = vae.state_dict()
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        state = {key.replace(f".{new}.", f".{old}."): value for key, value in state.items()}
    vae.save_config(tmp_path)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    loaded = FrozenEncoders.from_pretrained(base, vae_model_name_or_path=tmp_path).vae
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in vae.state_dict().items())


def test_a_tiny_autoencoder_loads_without_a_false_alarm(base):
    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    diffusers_logger = logging.getLogger("diffusers.configuration_utils")
    diffusers_logger.addHandler(handler)
    try:
        FrozenEncoders.from_pretrained(base)
        assert messages == []
        AutoencoderTiny.from_config({**AutoencoderTiny.load_config(base / "vae"), "unknown": 1})
        assert "'unknown'" in messages[0]
    finally:
        diffusers_logger.removeHandler(handler)
