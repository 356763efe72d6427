"""The demo's base is what SD 1.5 is in real life, and its script is the one that made it."""

import json

import torch
from diffusers import UNet2DConditionModel

from demo.data import FIRST_SEEDS
from demo.make_base import BASE_DIR, FIRST_SEED, Muon, draw_dancer, make_unet, orthogonal
from demo.music import CHORD_ROOTS


def test_the_base_is_small_and_its_heads_are_of_real_width():
    assert sum(path.stat().st_size for path in BASE_DIR.rglob("*") if path.is_file()) < 12e6
    unet = UNet2DConditionModel.from_pretrained(BASE_DIR / "unet")
    attentions = [module for name, module in unet.named_modules() if name.endswith((".attn1", ".attn2"))]
    widths = {attention.inner_dim // attention.heads for attention in attentions}
    assert attentions and min(widths) >= 32


def test_the_base_is_the_scripts_and_has_no_other_input_than_sd():
    config = json.loads((BASE_DIR / "unet" / "config.json").read_text(encoding="utf-8"))
    made = make_unet().config
    assert all(config[name] == (list(value) if isinstance(value, tuple) else value)
               for name, value in made.items() if not name.startswith("_"))  # fmt: skip
    assert config["in_channels"] == 4
    assert config["class_embed_type"] is None and config["addition_embed_type"] is None


def test_orthogonal_leaves_directions_and_evens_out_sizes():
    torch.manual_seed(0)
    for shape in ((8, 20), (20, 8)):
        matrix = torch.randn(shape)
        rotated = orthogonal(matrix)
        assert rotated.shape == shape
        sizes = torch.linalg.svdvals(rotated)
        assert 0.6 < sizes.min() and sizes.max() < 1.3
        assert (rotated * matrix).sum() > 0.8 * torch.linalg.svdvals(matrix).sum()


def test_muon_finds_a_minimum():
    torch.manual_seed(0)
    target, weight = torch.randn(6, 3, 2, 2), torch.nn.Parameter(torch.zeros(6, 3, 2, 2))
    optimizer = Muon([weight], lr=0.1)
    losses = []
    for _ in range(60):
        loss = (weight - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.1 * losses[0]


def test_the_bases_dancers_are_not_the_demos():
    frames, poses, lights = draw_dancer(0)
    assert frames.shape == (9, 128, 128, 3) and poses.shape == (8, 134, 3) and lights.shape == (8, 3)
    hues = torch.atan2(torch.tensor(lights[:, 2]), torch.tensor(lights[:, 1])) / (2 * torch.pi) % 1
    chords = hues * len(CHORD_ROOTS)
    assert torch.allclose(chords, chords.round(), atol=1e-3)
    assert max(FIRST_SEEDS.values()) + 100_000 < FIRST_SEED
