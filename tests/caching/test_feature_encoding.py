"""What the feature cache keeps is what training computes, and all that training then needs."""

import pytest
import torch
from accelerate import Accelerator

from caching.feature_encoding import FeatureEncoder
from models import ChampModel, PoseGuidanceEncoder, create_guidance_encoders, register_guidance_encoder
from training.execution.offloading import unused_modules
from training.objective import DiffusionObjective, make_noise_scheduler

TYPES = {"pose": 134, "depth": 1, "music": 35}
BATCH, FRAMES, SIZE = 2, 3, (8, 8)


@pytest.fixture
def model(tiny_base, fresh_accelerator):
    torch.manual_seed(0)
    encoders = create_guidance_encoders(
        list(TYPES), list(TYPES.values()), 32, block_out_channels=(8, 16, 32, 32)
    )
    model = ChampModel.from_pretrained_sd(tiny_base, encoders)
    for parameter in model.parameters():  # also what begins at zero
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def make_encoder(model, precision):
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return FeatureEncoder(
        model, Accelerator(cpu=True, mixed_precision=precision), batch_shape=(BATCH, FRAMES),
        latent_size=SIZE, dtype=dtype,
    )  # fmt: skip


def conditions():
    pose = torch.rand(BATCH, FRAMES, 134, 3)
    depth, music = torch.rand(BATCH, FRAMES, 1, 64, 64), torch.randn(BATCH, FRAMES, 35)
    return {
        "reference_latents": torch.randn(BATCH, 4, *SIZE), "image_tokens": torch.randn(BATCH, 1, 32),
        "guidance": {"pose": pose, "depth": depth, "music": music},
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_loss_is_the_same_without_the_parts_that_made_them(model, precision):
    encoder, known = make_encoder(model, precision), conditions()
    model.eval()
    objective = DiffusionObjective(make_noise_scheduler(), guidance_dropout=dict.fromkeys(TYPES, 0.5))
    latents = torch.randn(BATCH, FRAMES, 4, *SIZE)
    draw = objective.draw(latents, [(1, 2), (1, 3)])
    draw.reference_mask = torch.tensor([True, False])
    with encoder.accelerator.autocast(), torch.no_grad():
        expected = objective(model, latents, known, draw)
    guidance = known["guidance"]
    rows = {
        name: [encoder.encode_guidance({name: clip}, SIZE)[name] for clip in guidance[name]]
        for name in ("pose", "depth")
    }
    banks = [
        encoder.encode_bank(*pair)
        for pair in zip(known["reference_latents"], known["image_tokens"], strict=True)
    ]
    from_cache = {
        **known, "guidance": {"music": guidance["music"]},
        "guidance_features": {name: torch.stack(clips) for name, clips in rows.items()},
        "reference_bank": {name: torch.stack([bank[name] for bank in banks]) for name in banks[0]},
    }  # fmt: skip
    for module in unused_modules(model, encoder.guidance_types):
        module.to("meta")  # whoever looks at it fails
    with encoder.accelerator.autocast(), torch.no_grad():
        assert torch.equal(objective(model, latents, from_cache, draw), expected)


def test_its_sizes_are_known_before(model):
    encoder = make_encoder(model, "bf16")
    feature = encoder.encode_guidance({"pose": torch.rand(1, 134, 3)}, SIZE)["pose"]
    bank = encoder.encode_bank(torch.randn(4, *SIZE), torch.randn(1, 32))
    assert feature.shape == (1, *encoder.feature_shape(SIZE)) and feature.dtype == encoder.dtype
    assert sum(tokens.nbytes for tokens in bank.values()) == encoder.bank_bytes


def test_an_encoder_that_says_nothing_is_not_cached(tiny_base):
    @register_guidance_encoder("smooth_pose")
    class SmoothPose(PoseGuidanceEncoder):
        def forward(self, condition, image_size=None):
            return super().forward(condition.cumsum(1), image_size)  # frames look at earlier ones

    encoders = create_guidance_encoders(
        ["pose", "smooth_pose"], [134, 134], 32, block_out_channels=(8, 16, 32, 32)
    )
    model = ChampModel.from_pretrained_sd(tiny_base, encoders)
    assert model.guidance_encoders.frame_by_frame_types == ["pose"]
