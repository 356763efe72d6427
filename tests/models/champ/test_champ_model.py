"""The assembled model: kinds and numbers of guidance, masks, checkpointing, what trains, what is refused."""

import gc
import statistics
import weakref

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy

from models import (
    ChampModel,
    GuidanceEncoders,
    ModelError,
    create_guidance_encoders,
    register_guidance_encoder,
)
from models import guidance_encoder as registry_module
from models.champ.denoising_unet import MotionModule
from models.recomputation import CHECKPOINTING_LEVELS, levels
from training.planning.memory_tracking import MemoryTracker


def gradients(model: ChampModel, inputs: dict) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).square().mean().backward()
    return {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


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


@pytest.mark.parametrize("level", ["selective", "all"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_gradient_checkpointing_changes_nothing(make_model, make_inputs, level, precision):
    model, inputs = make_model(), make_inputs()
    inputs["reference_mask"] = torch.tensor([True, False])
    exact = gradients(model, inputs)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        prediction, expected = model(**inputs), gradients(model, inputs)
        model.enable_gradient_checkpointing(level)
        torch.testing.assert_close(model(**inputs), prediction, atol=0, rtol=0)
        found = gradients(model, inputs)
    assert set(found) == set(expected)
    if precision == torch.float32 or level == "all":
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)
    else:  # some sums of gradients are rounded in other places: as near to float32's all the same
        errors, stock_errors = (
            [float((some[name] - exact[name]).norm() / exact[name].norm()) for name in exact]
            for some in (found, expected)
        )
        assert statistics.median(errors) < 1.1 * statistics.median(stock_errors)
        assert max(error / stock for error, stock in zip(errors, stock_errors, strict=True)) < 1.5


def saved_bytes(module: torch.nn.Module, inputs: dict, monkeypatch) -> list[int]:
    """Bytes of what a forward pass keeps for its backward pass: saved tensors, dear outputs, no weights."""
    sizes, kept = {}, []

    def count(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # else its address could be used again
        return tensor

    def keep(context, *arguments, **keywords):
        outputs = context.op_output if isinstance(context.op_output, tuple) else (context.op_output,)
        for output in outputs:
            if isinstance(output, torch.Tensor):
                count(output)
        return CheckpointPolicy.MUST_SAVE

    monkeypatch.setattr(levels, "_keep", keep)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        module(**inputs)
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    return [size for address, size in sizes.items() if address not in weights]


def held_bytes(model: ChampModel, inputs: dict) -> int:
    """Bytes between a forward pass and its backward pass, inputs included."""
    with MemoryTracker("cpu") as tracker:
        output = model(**inputs)
        held = tracker.held["activations"]
    del output
    return held


def test_each_level_of_gradient_checkpointing_keeps_less(make_model, make_inputs):
    model, inputs = make_model(), make_inputs(num_clips=1, num_frames=8)
    found = {}
    for level in CHECKPOINTING_LEVELS:
        model.enable_gradient_checkpointing(level)
        found[level] = held_bytes(model, inputs)
    assert found["selective"] < 0.6 * found["none"] and found["all"] < 0.6 * found["selective"], found
    model.enable_gradient_checkpointing("none")
    assert held_bytes(model, inputs) == found["none"]


def test_selective_keeps_no_features_of_the_frames_size(monkeypatch):
    encoder = create_guidance_encoders(["depth"], [3], 32, block_out_channels=(16, 32, 96, 64))["depth"]
    inputs = {"condition": torch.rand(1, 1, 3, 128, 128)}
    largest = {}
    for level in ("none", "selective"):
        encoder.gradient_checkpointing = level != "none"
        encoder._gradient_checkpointing_func = levels.checkpoint_function(level)
        largest[level] = max(saved_bytes(encoder, inputs, monkeypatch))
    assert largest["none"] == 16 * 128 * 128 * 4  # the first two convolutions' 16 channels
    assert largest["selective"] == 32 * 64 * 64 * 4  # those at half the size, dear enough to stay


def test_frozen_blocks_and_sampling_are_not_watched(make_model, make_inputs, monkeypatch):
    """Selective checkpointing looks at each operation, which costs: only where a gradient can flow."""
    watched = []
    monkeypatch.setattr(levels, "_selective_contexts", lambda: watched.append(1))
    model = make_model()
    model.enable_gradient_checkpointing("selective")
    model.requires_grad_(False)
    model(**make_inputs())
    model.requires_grad_(True)
    with torch.no_grad():
        model(**make_inputs())
    assert not watched


def test_unknown_levels_of_gradient_checkpointing_are_named(make_model):
    with pytest.raises(ModelError, match="'some' is unknown: choose one of none, selective, all"):
        make_model().enable_gradient_checkpointing("some")


def test_gradient_checkpointing_recomputes_motion_modules_too(make_model):
    model = make_model()
    modules = [module for module in model.modules() if isinstance(module, MotionModule)]

    def calls() -> tuple[int, int]:
        """How many are called as a whole and in their blocks by a function of the level."""
        wholes = sum(module.checkpoint_function is not None for module in modules)
        return wholes, sum(module.block_function is not None for module in modules)

    assert calls() == (0, 0)
    model.enable_gradient_checkpointing("all")
    assert calls() == (len(modules) - 1, 0)  # diffusers itself checkpoints that of the middle block
    model.enable_gradient_checkpointing("selective")
    assert calls() == (0, len(modules))
    model.enable_gradient_checkpointing("none")
    assert calls() == (0, 0)


@pytest.mark.parametrize("checkpointing", CHECKPOINTING_LEVELS)
def test_a_forward_pass_that_is_never_followed_by_a_backward_leaves_nothing_behind(
    make_model, make_inputs, checkpointing
):
    model = make_model()
    model.enable_gradient_checkpointing(checkpointing)
    inputs = make_inputs()
    bank = model.encode_reference(inputs["reference_latents"], inputs["image_tokens"])
    tensors = [weakref.ref(tensor) for tensor in bank.values()]
    del bank
    gc.collect()
    assert not any(tensor() is not None for tensor in tensors)


@pytest.mark.parametrize("checkpointing", ["selective", "all"])
def test_calls_do_not_share_state(make_model, make_inputs, checkpointing):
    """Two forward passes before one backward, as in accumulation, equal two separate ones."""
    model = make_model()
    model.enable_gradient_checkpointing(checkpointing)
    first, second = make_inputs(seed=3), make_inputs(seed=4)
    separate = gradients(model, first), gradients(model, second)
    model.zero_grad()
    (model(**first).square().mean() + model(**second).square().mean()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                parameter.grad, separate[0][name] + separate[1][name], rtol=1e-4, atol=1e-5
            )


def test_reference_mask_false_is_the_model_without_reference(make_model, make_inputs):
    model, inputs = make_model(), make_inputs()
    with torch.no_grad():
        features = model.encode_guidance(inputs["guidance"], (8, 8))
        arguments = inputs["noisy_latents"], inputs["timesteps"], inputs["image_tokens"]
        without = model.denoise(*arguments, bank=None, features=features)
        with_reference = model(**inputs)
        mixed = model(**inputs, reference_mask=torch.tensor([True, False]))
    torch.testing.assert_close(mixed[0], with_reference[0])
    torch.testing.assert_close(mixed[1], without[1])
    assert (with_reference - without).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("mask", [None, [True, False]])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_reference_projected_once_gives_the_same_bits(make_model, make_inputs, mask, precision):
    model, inputs = make_model(), make_inputs()
    features = model.encode_guidance(inputs["guidance"], (8, 8))
    bank = model.encode_reference(inputs["reference_latents"], inputs["image_tokens"])
    rest = features, None if mask is None else torch.tensor(mask)
    arguments = inputs["noisy_latents"], inputs["timesteps"], inputs["image_tokens"]
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        expected, projected = model.denoise(*arguments, bank, *rest), model.project_reference(bank)
        assert all(part.dtype == precision for pair in projected.values() for part in pair)
        calls = count_calls_of_keys(model, bank)
        assert torch.equal(model.denoise(*arguments, projected, *rest), expected)
    assert calls == [1] * len(bank)  # of own tokens alone


def count_calls_of_keys(model: ChampModel, bank: dict) -> list[int]:
    """A list of how often each layer that reads the bank makes keys from here on."""
    counts = [0] * len(bank)
    for index, name in enumerate(bank):

        def count(*_, index=index):
            counts[index] += 1

        model.unet.get_submodule(name.removesuffix("processor") + "to_k").register_forward_hook(count)
    return counts


def test_a_reference_is_not_projected_by_weights_that_are_elsewhere(make_model):
    model = make_model()
    names = [name for name in model.reference_unet.attn_processors if name.endswith("attn1.processor")]
    bank = {name: torch.zeros(1, 4, 8, device="meta") for name in names}
    assert model.project_reference(bank) == bank


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


@pytest.mark.parametrize("checkpointing", ["selective", "all"])
def test_gradient_checkpointing_with_music_alone(make_model, make_inputs, checkpointing):
    model = make_model(types=["music"], channels=[3])
    model.enable_gradient_checkpointing(checkpointing)
    assert gradients(model, make_inputs(guidance={"music": torch.randn(2, 3, 3)}))


def test_music_statistics(encoders):
    music = encoders()["music"]
    music.set_feature_statistics(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 0.0, 1e-9]))
    assert torch.equal(
        music.feature_std, torch.tensor([2.0, 1.0, 1.0])
    )  # constant features are left unscaled
    condition = torch.tensor([[[3.0, 2.0, 3.0]]])
    standard = encoders()["music"]
    torch.testing.assert_close(
        music(condition), standard(torch.tensor([[[1.0, 0.0, 0.0]]]))
    )  # also one frame
    with pytest.raises(ModelError, match="2 features for an encoder of 3"):
        music.set_feature_statistics(torch.zeros(2), torch.ones(2))


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["pose"], [5, 3], 32), "1 guidance types .pose. but 2"),
        ((["pose", "pose"], [5, 5], 32), "repeat"),
        ((["pose"], [5], 32, {"block_out_channels": (16, 24)}), "divisible by 32"),
    ],
)
def test_wrong_encoder_settings_are_named(arguments, message):
    *arguments, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(ModelError, match=message):
        create_guidance_encoders(*arguments, **options)


@pytest.mark.parametrize("name", ["keys", "a.b"])
def test_impossible_type_names_are_refused(name):
    with pytest.raises(ModelError, match="rename"):
        GuidanceEncoders.from_encoders(create_guidance_encoders([name], [3], 32), 32, 128)


def test_encoders_that_do_not_describe_themselves_are_refused(tiny_base):
    with pytest.raises(ModelError, match="register_guidance_encoder"):
        ChampModel.from_pretrained_sd(tiny_base, {"camera": torch.nn.Linear(3, 32)})
