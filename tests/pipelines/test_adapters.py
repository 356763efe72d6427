"""A pipeline with adapters: what they change in a sample, alone, together, merged, and what they leave."""

import pytest
import torch

from models import GuidanceEncoders, ModelError
from pipelines.loading import add_adapters, load_pipeline

from .tiny_pipeline import make_inputs, make_pipeline, sample, write_adapter


@pytest.fixture(scope="module")
def final(tiny_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "final"
    make_pipeline(tiny_base).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def one(final, tmp_path_factory):
    return write_adapter(final, tmp_path_factory.mktemp("one") / "final", seed=1)


@pytest.fixture(scope="module")
def two(final, tmp_path_factory):
    return write_adapter(final, tmp_path_factory.mktemp("two") / "final", "unet", seed=2)


@pytest.fixture(scope="module")
def with_encoders(final, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders") / "final"
    return write_adapter(final, folder, "motion", "guidance_encoders", seed=3)


@pytest.fixture
def load(final):
    """load(adapters, scales): the base with them."""

    def load(adapters=(), scales=1.0):
        pipeline = load_pipeline(final)
        pipeline.set_progress_bar_config(disable=True)
        if adapters:
            pipeline.load_lora_weights(adapters, scales)
        return pipeline

    return load


def weights_of(pipeline) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipeline.model.state_dict().items()}


def test_merged_and_unmerged_sample_the_same(load, one, two, tmp_path):
    inputs, pipeline = make_inputs(), load([one, two], [0.8, 0.5])
    adapted = sample(pipeline, *inputs)
    assert (adapted - sample(load(), *inputs)).abs().max() > 1e-2
    pipeline.fuse_lora()
    torch.testing.assert_close(sample(pipeline, *inputs), adapted, rtol=0, atol=1e-5)
    pipeline.save_pretrained(tmp_path)
    torch.testing.assert_close(sample(load_pipeline(tmp_path), *inputs), adapted, rtol=0, atol=1e-5)


def test_at_scale_0_the_base_is_left_bit_for_bit(load, one, with_encoders):
    inputs = make_inputs()
    expected = sample(load(), *inputs)
    assert torch.equal(sample(load([one, with_encoders], 0), *inputs), expected)
    pipeline = load(one)
    assert not torch.equal(sample(pipeline, *inputs), expected)
    pipeline.set_adapters([])
    assert torch.equal(sample(pipeline, *inputs), expected)
    merged = load([one, with_encoders], 0)
    merged.fuse_lora()
    base = weights_of(load())
    assert base.keys() == weights_of(merged).keys()
    assert all(torch.equal(value, base[name]) for name, value in weights_of(merged).items())


def test_two_at_once_are_the_sum_of_their_changes(load, one, two):
    base, changes = weights_of(load()), []
    for adapters in ([one], [two], [one, two]):
        pipeline = load(adapters)
        pipeline.fuse_lora()
        changes.append({name: value - base[name] for name, value in weights_of(pipeline).items()})
    first, second, both = changes
    assert any(first[name].any() and second[name].any() for name in both)
    for name, change in both.items():
        torch.testing.assert_close(change, first[name] + second[name], rtol=0, atol=1e-6)


def test_guidance_encoders_that_an_adapter_brings_are_the_models(load, one, with_encoders, tmp_path):
    inputs, pipeline = make_inputs(), load([with_encoders, one], [0.5, 1])
    adapted = sample(pipeline, *inputs)
    saved = GuidanceEncoders.from_pretrained(with_encoders / "guidance_encoders").state_dict()
    found = pipeline.guidance_encoders.state_dict()
    assert found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in saved)
    pipeline.fuse_lora()
    pipeline.save_pretrained(tmp_path)
    torch.testing.assert_close(sample(load_pipeline(tmp_path), *inputs), adapted, rtol=0, atol=1e-5)
    with pytest.raises(ModelError, match="each brings guidance encoders"):
        load([with_encoders, with_encoders])


def test_adapters_are_given_at_once_and_not_saved_with_their_model(load, one, two, tmp_path):
    pipeline = load(one)
    with pytest.raises(ModelError, match="give all of them as a list"):
        pipeline.load_lora_weights(two)
    for save in (pipeline.save_pretrained, pipeline.model.save_pretrained):
        with pytest.raises(ModelError, match="fuse_lora"):
            save(tmp_path)
    with pytest.raises(ModelError, match="fuse_lora"):
        pipeline.model.save_champ_checkpoint(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_another_base_is_refused_in_one_line_that_names_both(load, one, final):
    pipeline = load()
    with torch.no_grad():
        pipeline.unet.conv_in.bias += 1
    with pytest.raises(ModelError) as refusal:
        add_adapters(pipeline, final, [(str(one), 1.0)])
    message = str(refusal.value)
    assert message.startswith(f"--model_path {final}: LoRA {one}") and "\n" not in message
    assert "was trained on another base" in message


def test_components_are_offloaded_with_their_adapters(load, one):
    inputs, pipeline = make_inputs(num_frames=1), load(one)
    expected = sample(pipeline, *inputs)
    pipeline.enable_model_cpu_offload(device="cpu")  # as on a GPU, but for the moves
    assert torch.equal(sample(pipeline, *inputs), expected)
    later = load()
    later.enable_model_cpu_offload(device="cpu")
    later.load_lora_weights(one)
    assert torch.equal(sample(later, *inputs), expected)


def test_a_base_in_half_precision_takes_the_same_adapters(load, one, final, tmp_path):
    inputs, expected = make_inputs(), sample(load(one), *make_inputs())
    load().to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    halved = load_pipeline(tmp_path)  # in float32
    halved.load_lora_weights(one)
    torch.testing.assert_close(sample(halved, *inputs), expected, rtol=0, atol=0.05)
    short = load(one).to(torch.bfloat16)
    assert {weights.dtype for weights in short.model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(sample(short, *inputs), expected, rtol=0, atol=0.5)
