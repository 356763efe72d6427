"""What users of diffusers' pipelines expect of ours: callbacks, tuples, variants, types, offloading."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from models import ChampModel, ModelError
from pipelines.champ_pipeline import ChampPipeline
from pipelines.loading import load_pipeline
from tests.pipelines.tiny_pipeline import count_calls, make_inputs, make_pipeline, sample


@pytest.fixture(scope="module")
def pipeline(tiny_base) -> ChampPipeline:
    return make_pipeline(tiny_base)


def test_a_tuple_instead_of_an_output(pipeline):
    inputs = make_inputs()
    (frames,) = pipeline(
        *inputs, generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="latent",
        return_dict=False,
    )  # fmt: skip
    assert torch.equal(frames, sample(pipeline, *inputs))


def test_a_callback_sees_each_step_and_may_replace_latents(pipeline):
    steps = []

    def blank_the_last(pipe, step, timestep, tensors):
        assert pipe is pipeline and list(tensors) == ["latents"]
        steps.append((step, int(timestep)))
        return {"latents": tensors["latents"] * (step < pipe.num_timesteps - 1)}

    references, guidance = make_inputs()
    frames = sample(pipeline, references, guidance, callback_on_step_end=blank_the_last)
    assert steps == [(0, 999), (1, 499)] and not frames.any()
    watched = sample(
        pipeline, references, guidance, callback_on_step_end=lambda pipe, step, timestep, tensors: tensors,
        callback_on_step_end_tensor_inputs=[],
    )  # fmt: skip
    assert torch.equal(watched, sample(pipeline, references, guidance))


def test_a_callback_may_change_the_scale_or_interrupt(pipeline, monkeypatch):
    calls = count_calls(pipeline, monkeypatch)

    def without_guidance(pipe, step, timestep, tensors):
        pipe._guidance_scale = 1.0
        return tensors

    sample(pipeline, *make_inputs(), num_inference_steps=3, callback_on_step_end=without_guidance)
    assert len(calls) == 2 + 1 + 1 and pipeline.guidance_scale == 1.0
    assert not pipeline.do_classifier_free_guidance

    def interrupt(pipe, step, timestep, tensors):
        pipe._interrupt = step == 0
        return tensors

    calls.clear()
    sample(pipeline, *make_inputs(), num_inference_steps=3, callback_on_step_end=interrupt)
    assert len(calls) == 2 and pipeline.interrupt
    sample(pipeline, *make_inputs(), num_inference_steps=1)
    assert not pipeline.interrupt


def test_several_videos_of_each_clip(pipeline):
    references, guidance = make_inputs(num_clips=2)
    options = {"num_inference_steps": 2, "output_type": "latent", "guidance_scales": {"pose": 1.0}}
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    four = pipeline(references, guidance, num_videos_per_prompt=2, generator=generators, **options).frames
    assert len(four) == 4
    for index in range(4):  # clips' copies lie side by side
        clip = index // 2
        one = {name: condition[clip] for name, condition in guidance.items()}
        generator = torch.Generator().manual_seed(index)
        alone = pipeline(references[clip], one, generator=generator, **options).frames[0]
        assert torch.allclose(four[index], alone, atol=1e-5)


def test_weights_are_saved_and_loaded_by_variant(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path, variant="fp16")
    parts = ("unet", "reference_unet", "guidance_encoders", "vae", "image_encoder")
    assert all(list((tmp_path / name).glob("*.fp16.safetensors")) for name in parts)
    assert not [path for path in tmp_path.glob("*/*.safetensors") if ".fp16." not in path.name]
    loaded = load_pipeline(tmp_path, variant="fp16")
    for name in parts:
        ours, theirs = (getattr(one, name).state_dict() for one in (pipeline, loaded))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert load_pipeline(tmp_path).unet.dtype == torch.float32  # the only one is found by itself
    with pytest.raises(ModelError, match="other"):
        load_pipeline(tmp_path, variant="other")


def test_every_key_of_a_variant_is_checked(pipeline, tmp_path):
    pipeline.model.save_pretrained(tmp_path, variant="fp16")
    path = tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    weights = load_file(path)
    del weights["conv_in.bias"]
    save_file(weights, path)
    with pytest.raises(ModelError, match="1 keys missing.*conv_in.bias"):
        ChampModel.from_pretrained(tmp_path, variant="fp16")


def test_components_in_types_of_their_own(pipeline, tmp_path):
    inputs = make_inputs()
    before = sample(pipeline, *inputs, output_type="np")
    pipeline.save_pretrained(tmp_path)
    types = {"vae": torch.bfloat16, "unet": torch.bfloat16, "default": torch.float32}
    mixed = ChampPipeline.from_pretrained(tmp_path, torch_dtype=types)
    assert mixed.unet.dtype == torch.bfloat16 and mixed.reference_unet.dtype == torch.float32
    assert np.abs(sample(mixed, *inputs, output_type="np") - before).max() < 0.05


def test_default_attention_processors_are_ours(pipeline):
    inputs = make_inputs()
    before = sample(pipeline, *inputs)
    for part in (pipeline.unet, pipeline.reference_unet):
        part.set_default_attn_processor()
    pipeline.enable_attention_slicing(1)
    assert torch.equal(sample(pipeline, *inputs), before)
    copied = copy.deepcopy(pipeline.model)
    copied.reference_unet.set_default_attn_processor()
    assert copied.reference_unet.attn_processors.keys() == pipeline.reference_unet.attn_processors.keys()


def test_the_autoencoder_in_slices_and_tiles(pipeline):
    inputs = make_inputs()
    before = sample(pipeline, *inputs, output_type="np")
    pipeline.enable_vae_slicing()
    pipeline.enable_vae_tiling()
    assert pipeline.vae.use_slicing and pipeline.vae.use_tiling
    sliced = sample(pipeline, *inputs, output_type="np")
    pipeline.disable_vae_slicing()
    pipeline.disable_vae_tiling()
    assert not pipeline.vae.use_slicing and not pipeline.vae.use_tiling
    assert np.abs(sliced - before).max() < 1e-4


def test_offloading_one_component_at_a_time(tiny_base, monkeypatch):
    pipeline, inputs = make_pipeline(tiny_base), make_inputs(num_frames=1)
    before = sample(pipeline, *inputs, output_type="np")
    parts = list(pipeline.decode_parts(sample(pipeline, *inputs)))
    pipeline.enable_model_cpu_offload(device="cpu")  # as on a GPU, but for the moves
    hooked = [name for name, part in pipeline.components.items() if hasattr(part, "_hf_hook")]
    assert sorted(hooked) == ["guidance_encoders", "image_encoder", "reference_unet", "unet", "vae"]
    for _ in range(2):
        np.testing.assert_array_equal(sample(pipeline, *inputs, output_type="np"), before)
    again = list(pipeline.decode_parts(sample(pipeline, *inputs)))
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate(parts))


@torch.no_grad()
def test_weights_are_read_while_their_module_is_called(tiny_base):
    """What offloading of single layers relies on: at other times their weights lie elsewhere."""
    pipeline, inputs = make_pipeline(tiny_base), make_inputs()
    before = sample(pipeline, *inputs, output_type="np")

    def hide(module, kept):
        for parameter in kept:
            parameter.data = torch.full_like(parameter, float("nan"))

    def show(module, kept):
        for parameter, values in kept.items():
            parameter.data = values

    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    for module in [module for part in parts for module in part.modules()]:
        kept = {parameter: parameter.data for parameter in module.parameters(recurse=False)}
        if kept:
            module.register_forward_pre_hook(lambda module, args, kept=kept: show(module, kept))
            module.register_forward_hook(lambda module, args, output, kept=kept: hide(module, kept))
            hide(module, kept)
    np.testing.assert_array_equal(sample(pipeline, *inputs, output_type="np"), before)
