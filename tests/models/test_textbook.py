"""The model's parts against formulas written out by hand; needs nothing but the repository."""

import sys
import types

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch.nn import functional

from models import GuidanceFeatures, ModelError, MotionDenoisingUNet
from models.champ import attention_backend
from models.champ.attention_backend import attend, check_attention_backend
from models.champ.denoising_unet import ImageDenoisingUNet, MotionModule
from models.champ.reference_attention import (
    ImageTokenAttention,
    ReferenceReadAttention,
    ReferenceWriteAttention,
)
from models.guidance_encoder import POSE_SIGMA, heat_map_convolution

HEADS, WIDTH = 2, 8


def make_attention(**options) -> Attention:
    torch.manual_seed(0)
    return Attention(query_dim=WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, **options)


def softmax_attention(attn: Attention, queries: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Attention of one sequence [L, C] over tokens [M, D], head by head."""
    query, key, value = attn.to_q(queries), attn.to_k(tokens), attn.to_v(tokens)
    heads = []
    for head in range(HEADS):
        part = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
        scores = query[:, part] @ key[:, part].T / (WIDTH // HEADS) ** 0.5
        weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
        heads.append(weights @ value[:, part])
    return attn.to_out[0](torch.cat(heads, dim=1))


def test_reference_attention_is_softmax_over_own_and_reference_tokens():
    attn = make_attention()
    own, reference = torch.randn(2 * 3, 5, WIDTH), torch.randn(2, 5, WIDTH)  # 2 clips of 3 frames
    read = ReferenceReadAttention("name")
    output = read(attn, own, reference_bank={"name": reference, "another": torch.randn(2, 5, WIDTH)})
    for clip in range(2):
        for frame in range(3):
            tokens = own[3 * clip + frame]
            expected = softmax_attention(attn, tokens, torch.cat([tokens, reference[clip]]))
            torch.testing.assert_close(output[3 * clip + frame], expected)


def test_without_reference_it_is_plain_self_attention():
    attn = make_attention()
    own, bank = torch.randn(2 * 3, 5, WIDTH), {"name": torch.randn(2, 5, WIDTH)}
    read = ReferenceReadAttention("name")
    plain = torch.stack([softmax_attention(attn, tokens, tokens) for tokens in own])
    torch.testing.assert_close(read(attn, own), plain)
    nobody = read(attn, own, reference_bank=bank, reference_mask=torch.tensor([False, False]))
    torch.testing.assert_close(nobody, plain)
    second = read(attn, own, reference_bank=bank, reference_mask=torch.tensor([False, True]))
    torch.testing.assert_close(second[:3], plain[:3])
    torch.testing.assert_close(second[3:], read(attn, own, reference_bank=bank)[3:])


def test_reference_writes_what_it_attends_to():
    attn, tokens = make_attention(), torch.randn(2, 5, WIDTH)
    bank = {}
    output = ReferenceWriteAttention("name")(attn, tokens, bank_to_write=bank)
    assert bank["name"] is tokens
    torch.testing.assert_close(output[0], softmax_attention(attn, tokens[0], tokens[0]))


@pytest.mark.parametrize("num_tokens", [1, 4])
def test_image_token_attention(num_tokens):
    attn = make_attention(cross_attention_dim=6)
    queries, tokens = torch.randn(2, 5, WIDTH), torch.randn(2, num_tokens, 6)
    output = ImageTokenAttention()(attn, queries, tokens).expand(2, 5, WIDTH)
    for index in range(2):
        torch.testing.assert_close(output[index], softmax_attention(attn, queries[index], tokens[index]))


def test_large_batches_are_attended_in_chunks(monkeypatch):
    query, key = torch.randn(7, 3, WIDTH), torch.randn(7, 4, WIDTH)
    whole = attend(query, key, key, HEADS, "sdpa")
    monkeypatch.setattr(attention_backend, "MAX_ATTENTION_BATCH", 3)
    torch.testing.assert_close(attend(query, key, key, HEADS, "sdpa"), whole)


def test_xformers_is_called_by_our_own_processors(monkeypatch, make_model, make_inputs):
    calls = []

    def memory_efficient_attention(query, key, value):  # [N, L, heads, d], as xformers takes it
        calls.append(query.shape)
        assert query.shape[0] <= 65_535
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    model, inputs = make_model(), make_inputs()
    expected = model(**inputs)
    for error in ("not installed", "CUDA"):
        with pytest.raises(ModelError, match=error):
            model.set_attention_backend("xformers")
        package = types.ModuleType("xformers")
        package.ops = types.ModuleType("xformers.ops")
        package.ops.memory_efficient_attention = memory_efficient_attention
        package.__spec__ = package.ops.__spec__ = types.SimpleNamespace()
        monkeypatch.setitem(sys.modules, "xformers", package)
        monkeypatch.setitem(sys.modules, "xformers.ops", package.ops)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    model.set_attention_backend("xformers")
    torch.testing.assert_close(model(**inputs), expected)
    batches = {shape[0] for shape in calls}
    assert {2, 6, 2 * 64} <= batches  # reference, spatial and temporal attention all went through it
    with pytest.raises(ModelError, match="unknown"):
        check_attention_backend("flash")


def test_motion_module_attends_over_the_frames_of_each_pixel():
    torch.manual_seed(0)
    stock = AnimateDiffTransformer3D(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=32,
        norm_num_groups=8,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=32,
    )
    module = MotionModule(stock)
    features = torch.randn(2 * 3, 32, 4, 5)  # 2 clips of 3 frames
    torch.testing.assert_close(module(features, num_frames=3), features)  # fresh: the identity
    torch.nn.init.normal_(module.proj_out.weight)
    output = module(features, num_frames=3)
    # By hand: norm of each frame by itself in 32 groups, then one sequence of 3 frames for each pixel.
    normed = torch.stack([functional.group_norm(frame[None], 32, eps=1e-6)[0] for frame in features])
    for clip, row, column in ((0, 0, 0), (1, 3, 2)):
        frames = slice(3 * clip, 3 * clip + 3)
        tokens = module.proj_in(normed[frames, :, row, column])[None]  # [1, 3, 32]
        for block in module.transformer_blocks:
            tokens = block(tokens)
        expected = features[frames, :, row, column] + module.proj_out(tokens)[0]
        torch.testing.assert_close(output[frames, :, row, column], expected)


@pytest.mark.parametrize("size", [(8, 8), (5, 6)])
def test_without_guidance_and_reference_it_is_the_base_unet(tiny_base, size):
    base = UNet2DConditionModel.from_pretrained(tiny_base, subfolder="unet")
    latents, tokens = torch.randn(2, 3, 4, *size), torch.randn(2, 1, 16)
    timesteps = torch.tensor([3, 900])
    with torch.no_grad():
        expected = torch.stack(
            [base(latents[:, frame], timesteps, tokens).sample for frame in range(3)], dim=1
        )
        for unet_class in (ImageDenoisingUNet, MotionDenoisingUNet):  # fresh motion modules are the identity
            unet = unet_class.from_unet2d(base)
            torch.testing.assert_close(unet(latents, timesteps, tokens, GuidanceFeatures()), expected)


def gaussian_maps(points: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Heat maps [N, K, H, W], pixel by pixel; x and y in 0..1 of the frame, pixel centres at halves."""
    sigma = POSE_SIGMA * min(height, width)
    maps = torch.zeros(*points.shape[:2], height, width)
    for image, person in enumerate(points.tolist()):
        for point, (x, y, confidence) in enumerate(person):
            for row in range(height):
                for column in range(width):
                    squared = (column + 0.5 - x * width) ** 2 + (row + 0.5 - y * height) ** 2
                    maps[image, point, row, column] = (
                        confidence * torch.tensor(-squared / (2 * sigma**2)).exp()
                    )
    return maps


def test_folded_heat_maps_equal_the_convolution_of_the_maps():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 4, kernel_size=3, padding=1)
    points = torch.rand(2, 3, 3)
    points[0, 0, :2] = torch.tensor([0.0, 1.0])  # in a corner, where the map is cut
    folded = heat_map_convolution(conv, points, (40, 56))
    expected = conv(gaussian_maps(points, 40, 56))
    torch.testing.assert_close(folded, expected)
    folded_gradient = torch.autograd.grad(folded.square().sum(), conv.weight)[0]
    torch.testing.assert_close(folded_gradient, torch.autograd.grad(expected.square().sum(), conv.weight)[0])


def test_absent_points_add_nothing():
    conv = torch.nn.Conv2d(3, 4, kernel_size=3, padding=1)
    points = torch.rand(1, 3, 3)
    points[0, 1] = torch.tensor([float("nan"), 0.5, 0.0])
    with torch.no_grad():
        folded = heat_map_convolution(conv, points, (16, 16))
        conv.weight[:, 1] = 1000.0
        torch.testing.assert_close(heat_map_convolution(conv, points, (16, 16)), folded)
