"""The assembled model: kinds and numbers of guidance, masks, what trains, what is refused."""

import pytest
import torch

from models import (
    ChampModel,
    ModelError,
    create_guidance_encoders,
    register_guidance_encoder,
)
from models import guidance_encoder as registry_module
from tests.models.gradients import gradients


@pytest.mark.parametrize("motion_modules", [True, False])
def test_every_trainable_parameter_gets_a_gradient_and_no_other(make_model, make_inputs, motion_modules):
    model = make_model(motion_modules=motion_modules)
    found = gradients(model, make_inputs())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(found) == trainable
    assert all(gradient.any() for gradient in found.values())
    assert trainable | model.untrainable_names == {name for name, _ in model.named_parameters()}
    assert "reference_unet.conv_out.weight" in model.untrainable_names
    assert bool(model.motion_parameter_names()) == motion_modules


@pytest.mark.parametrize("dropped", ["music", "pose"])
def test_guidance_mask_false_is_the_type_left_out(make_model, make_inputs, dropped):
    model, inputs = make_model(), make_inputs()
    guidance = inputs.pop("guidance")
    with torch.no_grad():
        everything = model(**inputs, guidance=guidance)
        left_out = model(
            **inputs, guidance={name: value for name, value in guidance.items() if name != dropped}
        )
        mixed = model(**inputs, guidance=guidance, guidance_mask={dropped: torch.tensor([False, True])})
    torch.testing.assert_close(mixed[0], left_out[0])
    torch.testing.assert_close(mixed[1], everything[1])
    assert (everything - left_out).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-4


def test_without_any_guidance(make_model, make_inputs):
    model, inputs = make_model(), make_inputs(guidance={})
    assert model(**inputs).shape == (2, 3, 4, 8, 8)


def test_music_conditions_frame_by_frame(make_model, make_inputs):
    """In the image model, where frames do not see each other, other music in a frame changes its context."""
    model, inputs = make_model(motion_modules=False), make_inputs(num_frames=12)
    changed = dict(inputs["guidance"], music=inputs["guidance"]["music"].clone())
    changed["music"][:, 2] += 1.0
    with torch.no_grad():
        difference = (model(**inputs) - model(**dict(inputs, guidance=changed))).abs().amax(dim=(0, 2, 3, 4))
    assert (difference[:7] > 0).all()  # two convolutions of kernel 5 reach four frames
    assert (difference[7:] == 0).all()


@pytest.mark.parametrize("width", [1280, 320, 128, 32, 24])
@pytest.mark.parametrize("motion_modules", [True, False])
def test_any_embedding_width(tiny_base, make_inputs, width, motion_modules):
    """The tiny UNet's entries are 32 (spatial) and 128 (vector) wide: equal width has no projection."""
    encoders = create_guidance_encoders(["music", "pose"], [3, 5], width, block_out_channels=(8, 8, 16, 32))
    model = ChampModel.from_pretrained_sd(tiny_base, encoders, motion_modules=motion_modules)
    projected = (
        {"music", "pose"} - ({"music"} if width == 128 else set()) - ({"pose"} if width == 32 else set())
    )
    assert set(model.guidance_encoders.projections) == projected
    inputs = make_inputs(num_clips=1, num_frames=2)
    plain = model(**dict(inputs, guidance={}))
    torch.testing.assert_close(model(**inputs), plain)  # starts as if there were no guidance
    optimizer = torch.optim.SGD([p for p in model.guidance_encoders.parameters()], lr=1.0)
    for _ in range(2):  # the zero layer moves first, then everything before it has a gradient
        found = gradients(model, inputs)
        optimizer.step()
    for guidance_type in ("music", "pose"):
        name = {"music": "linear_in.weight", "pose": "conv_in.weight"}[guidance_type]
        assert found[f"guidance_encoders.encoders.{guidance_type}.{name}"].any()


def test_five_types_of_every_kind(make_model, make_inputs):
    model = make_model(
        types=["depth", "music", "pose", "normal", "dwpose"], channels=[1, 4, 5, 3, 3], spatial_music=True
    )
    guidance = {
        "depth": torch.rand(2, 3, 1, 64, 64),
        "music": torch.randn(2, 3, 4, 20, 12),  # maps of any size
        "pose": torch.rand(2, 3, 5, 64, 64),  # heat maps instead of key points
        "normal": torch.rand(2, 3, 3, 64, 64),
        "dwpose": torch.rand(2, 3, 3, 64, 64),
    }
    inputs = make_inputs(guidance=guidance)
    together = model.encode_guidance(guidance, (8, 8))
    assert together.vector is None
    alone = [model.encode_guidance({name: value}, (8, 8)).spatial for name, value in guidance.items()]
    torch.testing.assert_close(together.spatial, sum(alone))
    assert model(**inputs).shape == (2, 3, 4, 8, 8)


def test_pose_key_points_equal_their_heat_maps(make_model):
    model = make_model()
    points = torch.rand(1, 2, 5, 3)
    rows, columns = registry_module.gaussian_profiles(points[0], (64, 48))
    maps = (rows[..., None] * columns[..., None, :])[None]
    from_points = model.encode_guidance({"pose": points}, (8, 6)).spatial
    torch.testing.assert_close(from_points, model.encode_guidance({"pose": maps}, (8, 6)).spatial)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(registry_module, "_REGISTRY", dict(registry_module._REGISTRY))


def test_types_of_ones_own(registry, tiny_base, make_inputs, tmp_path):
    @register_guidance_encoder("camera", kind="vector")
    class CameraEncoder(torch.nn.Module):
        def __init__(self, guidance_embedding_channels, guidance_input_channels):
            super().__init__()
            self.linear = torch.nn.Linear(guidance_input_channels, guidance_embedding_channels)

        def forward(self, condition):
            return self.linear(condition)

    model = ChampModel.from_pretrained_sd(tiny_base, create_guidance_encoders(["camera"], [6], 48))
    inputs = make_inputs(guidance={"camera": torch.randn(2, 3, 6)})
    found = gradients(model, inputs)
    assert found["guidance_encoders.projections.camera.weight"].any()
    with torch.no_grad():
        model.guidance_encoders.projections["camera"].weight.normal_()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(ChampModel.from_pretrained(tmp_path)(**inputs), model(**inputs))
    del registry_module._REGISTRY["camera"]
    with pytest.raises(ModelError, match="CameraEncoder.*--guidance_modules"):
        ChampModel.from_pretrained(tmp_path)


def test_more_frames_than_positions_is_an_error(make_model, make_inputs):
    inputs = make_inputs(num_clips=1, num_frames=33)
    with pytest.raises(ModelError, match="33 frames.*32"):
        make_model()(**inputs)
    assert make_model(motion_modules=False)(**inputs).shape[1] == 33


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_tokens": torch.zeros(2, 1, 24)}, "24 wide.*16"),
        ({"guidance": {"depth": torch.zeros(2, 3, 3, 64, 64)}}, "'depth'.*music, pose"),
        ({"guidance": {"music": torch.zeros(2, 3, 4)}}, r"\[2, 3, 4\].*\[B, F, 3\]"),
        ({"guidance": {"pose": torch.zeros(2, 3, 134, 3)}}, r"\[2, 3, 134, 3\].*\[B, F, 5, 3\]"),
        ({"guidance": {"pose": torch.zeros(2, 3, 5, 32, 32)}}, r"'pose'.*\[2, 3, 32, 4, 4\].*8x8"),
    ],
)
def test_wrong_inputs_are_named(make_model, make_inputs, change, message):
    with pytest.raises(ModelError, match=message):
        make_model()(**dict(make_inputs(), **change))


def test_encoders_that_do_not_describe_themselves_are_refused(tiny_base):
    with pytest.raises(ModelError, match="register_guidance_encoder"):
        ChampModel.from_pretrained_sd(tiny_base, {"camera": torch.nn.Linear(3, 32)})
