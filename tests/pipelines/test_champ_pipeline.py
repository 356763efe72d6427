"""The sampling pipeline: the textbook's steps, saved and loaded to the bit, any guidance, any length."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from PIL import Image
from safetensors.torch import load_file

from datasets.transforms import clip_image_transform
from models import ChampModel, ModelError, create_guidance_encoders
from pipelines.champ_pipeline import ChampPipeline
from pipelines.context_windows import WindowGrid, context_windows, frame_weights
from pipelines.guided_prediction import Denoiser, GuidanceScales, WindowFeatures
from pipelines.schedulers import noise_levels
from tests.pipelines.tiny_pipeline import (
    NUM_FRAMES,
    SETTINGS,
    SIZE,
    count_calls,
    make_inputs,
    make_pipeline,
    sample,
)
from training.objective import make_noise_scheduler

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"


@pytest.fixture(scope="module")
def pipeline(tiny_base) -> ChampPipeline:
    return make_pipeline(tiny_base)


@torch.no_grad()
def textbook_sample(pipeline: ChampPipeline, references, guidance, *, num_steps: int, scale: float):
    """DDIM (arXiv:2010.02502) written out, with one doubled and masked call of the whole model a step."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = torch.sqrt(torch.cumprod(1 - betas, 0))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])  # zero terminal SNR, arXiv:2305.08891
    frozen, num_frames = pipeline.frozen, guidance["pose"].shape[1]
    tokens = frozen.encode_image_tokens(clip_image_transform(references[0])[None])
    tokens = torch.cat([torch.zeros_like(tokens), tokens])
    reference_latents = frozen.encode_reference(references).repeat(2, 1, 1, 1)
    doubled = {name: condition.repeat(2, *[1] * (condition.ndim - 1)) for name, condition in guidance.items()}
    # The reference UNet sees the picture's tokens in both halves: the mask takes the bank from the first.
    mask = torch.tensor([False, True])
    latents = torch.randn(1, num_frames, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    stride = 1000 // num_steps
    for step in range(num_steps):
        time = 999 - step * stride
        times = torch.tensor([time, time])
        both = latents.repeat(2, 1, 1, 1, 1)
        output = pipeline.model(both, times, reference_latents, tokens, doubled, reference_mask=mask)
        velocity = output[:1] + scale * (output[1:] - output[:1])
        signal, noise_level = root[time].item(), (1 - root[time] ** 2).sqrt().item()
        clean = signal * latents - noise_level * velocity
        noise = signal * velocity + noise_level * latents
        previous = root[time - stride].item() if time >= stride else 1.0
        latents = previous * clean + (1 - previous**2) ** 0.5 * noise
    return latents


def test_steps_are_the_textbook_s(pipeline):
    references, guidance = make_inputs()
    ours = sample(pipeline, references, guidance, num_inference_steps=4, guidance_scale=2.5)
    expected = textbook_sample(pipeline, references, guidance, num_steps=4, scale=2.5)
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def plain_sample(pipeline: ChampPipeline, references, guidance, *, num_steps: int, scale: float):
    """The sampler of earlier versions, without all that has been added: its bits are a promise."""
    frozen, model, scheduler = pipeline.frozen, pipeline.model, pipeline.scheduler
    num_clips, num_frames = guidance["pose"].shape[:2]
    tokens = frozen.encode_image_tokens(torch.stack([clip_image_transform(one) for one in references]))
    bank = model.encode_reference(frozen.encode_reference(references), tokens)
    windows = context_windows(num_frames, 8, 2)
    features = [
        model.encode_guidance({name: one[:, window] for name, one in guidance.items()}, (8, 8))
        for window in windows
    ]
    scheduler.set_timesteps(num_steps)
    latents = torch.randn(num_clips, num_frames, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        times, total, weight = timestep.expand(num_clips), torch.zeros_like(latents), torch.zeros(num_frames)
        for window, one in zip(windows, features, strict=True):
            prediction = model.denoise(latents[:, window], times, tokens, bank, one)
            if scale != 1.0:
                without = model.denoise(latents[:, window], times, torch.zeros_like(tokens), None, one)
                prediction = without + scale * (prediction - without)
            weights = frame_weights(window.stop - window.start, 2)
            total[:, window] += prediction * weights[:, None, None, None]
            weight[window] += weights
        latents = scheduler.step(total / weight[:, None, None, None], timestep, latents).prev_sample
    return latents


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_by_default_the_bits_are_those_of_the_plain_sampler(pipeline, scale):
    references, guidance = make_inputs(num_frames=11, num_clips=2)
    expected = plain_sample(pipeline, references, guidance, num_steps=2, scale=scale)
    assert torch.equal(sample(pipeline, references, guidance, guidance_scale=scale), expected)
    off = {"guidance_scales": {"music": 0, "pose": 0.0}, "guidance_interval": None, "window_grids": 1}
    assert torch.equal(sample(pipeline, references, guidance, guidance_scale=scale, **off), expected)


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no recorded tensors of the original in {GOLDEN}")
def test_a_guided_call_equals_the_original(tiny_base):
    types = ["depth", "normal", "dwpose"]
    encoders = create_guidance_encoders(types, [3, 3, 3], 32, block_out_channels=(16, 32, 64, 32))
    model = ChampModel.from_champ_checkpoint(GOLDEN / "base", GOLDEN / "official", encoders)
    case = load_file(GOLDEN / "cases" / "cfg_read.safetensors")
    guidance = dict(zip(types, case["guidance"].transpose(1, 2).split(3, dim=2), strict=True))
    with torch.no_grad():
        bank = model.encode_reference(case["ref_image_latents"], case["clip_image_embeds"])
        features = WindowFeatures(model, guidance, (16, 16), torch.device("cpu"))
        denoiser = Denoiser(model, bank, case["clip_image_embeds"], features)
        latents, timestep = case["latents"].transpose(1, 2), case["timestep"][0]
        unconditional, conditional = case["pred_bank32"].transpose(1, 2).split(1)
        for scale in (0.0, 1.0, 3.5):
            grid, scales = WindowGrid([slice(0, 4)], fade=0), GuidanceScales(scale)
            ours = denoiser.predict(latents, timestep, grid, scales)
            expected = unconditional + scale * (conditional - unconditional)
            assert (ours - expected).abs().max() < 1e-4


def test_a_saved_pipeline_samples_the_same_bits(pipeline, tmp_path):
    references, guidance = make_inputs()
    before = sample(pipeline, references, guidance, output_type="np")
    pipeline.save_pretrained(tmp_path)
    loaded = ChampPipeline.from_pretrained(tmp_path)
    assert {name: loaded.config[name] for name in SETTINGS} == SETTINGS
    np.testing.assert_array_equal(sample(loaded, references, guidance, output_type="np"), before)
    model = ChampModel.from_pretrained(tmp_path)  # the same folder is a saved model
    parts = {name: getattr(model, name) for name in ("unet", "reference_unet", "guidance_encoders")}
    loaded = ChampPipeline.from_pretrained(tmp_path, **parts)
    np.testing.assert_array_equal(sample(loaded, references, guidance, output_type="np"), before)


def test_half_precision_weights_sample_nearly_the_same(pipeline, tmp_path):
    references, guidance = make_inputs()
    before = sample(pipeline, references, guidance, output_type="np")
    pipeline.save_pretrained(tmp_path)
    half = ChampPipeline.from_pretrained(tmp_path).to(torch.bfloat16)
    assert half.unet.dtype == torch.bfloat16
    assert np.abs(sample(half, references, guidance, output_type="np") - before).max() < 0.05


def test_guidance_scale_one_skips_the_unconditional_half(pipeline, monkeypatch):
    calls = count_calls(pipeline, monkeypatch)
    sample(pipeline, *make_inputs(), guidance_scale=1.0)
    assert calls == [NUM_FRAMES] * 2
    calls.clear()
    sample(pipeline, *make_inputs(), guidance_scale=2.0)
    assert calls == [NUM_FRAMES] * 4


def test_seeds_and_batches(pipeline):
    references, guidance = make_inputs(num_clips=2)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    options = {"num_inference_steps": 2, "output_type": "latent"}
    both = pipeline(references, guidance, generator=generators, **options).frames
    for index, seed in enumerate((3, 4)):
        clip = {name: condition[index] for name, condition in guidance.items()}  # one picture: no batch axis
        alone = sample(pipeline, references[index], clip, seed=seed)
        assert alone.shape[0] == 1
        assert torch.allclose(both[index], alone[0], atol=1e-5)
    assert not torch.allclose(both[0], both[1])


@pytest.mark.parametrize("name", ["music", "pose"])
def test_any_subset_of_the_guidance(pipeline, name):
    references, guidance = make_inputs()
    full = sample(pipeline, references, guidance)
    part = sample(pipeline, references, {name: guidance[name]})
    assert part.shape == full.shape and not torch.allclose(part, full, atol=1e-4)


def test_long_clips_are_sampled_in_windows(pipeline, monkeypatch):
    calls = count_calls(pipeline, monkeypatch)
    references, guidance = make_inputs(num_frames=35)  # the motion modules know 32 positions
    latents = sample(pipeline, references, guidance, num_inference_steps=1, guidance_scale=1.0)
    assert latents.shape == (1, 35, 4, 8, 8) and latents.isfinite().all()
    assert calls == [8] * 6  # the trained length, a quarter shared: 0, 6, 12, 18, 24, 27
    first = {name: condition[:, :8] for name, condition in guidance.items()}
    noise = torch.randn(1, 35, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    alone = sample(
        pipeline, references, first, num_inference_steps=1, guidance_scale=1.0, latents=noise[:, :8]
    )
    assert torch.allclose(latents[:, :6], alone[:, :6], atol=1e-5)  # what no other window covers
    assert not torch.allclose(latents[:, 6:8], alone[:, 6:8], atol=1e-5)


def test_without_motion_modules_frames_are_independent(tiny_base):
    pipeline = make_pipeline(tiny_base, motion_modules=False)
    references, guidance = make_inputs(num_frames=3)
    noise = torch.randn(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    clip = sample(pipeline, references, guidance, latents=noise)
    for frame in range(3):
        one = {name: condition[:, frame : frame + 1] for name, condition in guidance.items()}
        alone = sample(pipeline, references, one, latents=noise[:, frame : frame + 1])
        assert torch.allclose(clip[:, frame], alone[:, 0], atol=1e-5)


def test_output_types_show_the_same_frames(pipeline):
    references, guidance = make_inputs()
    arrays = sample(pipeline, references, guidance, output_type="np")
    assert arrays.shape == (1, NUM_FRAMES, SIZE, SIZE, 3) and 0 <= arrays.min() and arrays.max() <= 1
    tensors = sample(pipeline, references, guidance, output_type="pt")
    np.testing.assert_array_equal(tensors.permute(0, 1, 3, 4, 2).numpy(), arrays)
    pictures = sample(pipeline, references, guidance, output_type="pil")
    assert np.abs(np.asarray(pictures[0][1]) / 255 - arrays[0, 1]).max() < 0.003
    latents = sample(pipeline, references, guidance)
    decoded = pipeline.frozen.decode_frames(latents)
    assert torch.allclose(decoded / 2 + 0.5, tensors, atol=1e-6)


def test_pictures_of_any_size_are_references(pipeline):
    _, guidance = make_inputs()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90), np.uint8))  # grey
    clip = {name: condition[0] for name, condition in guidance.items()}
    one = sample(pipeline, picture, clip)
    assert one.shape == (1, NUM_FRAMES, 4, 8, 8)
    assert torch.equal(one, sample(pipeline, [picture], guidance))


def test_sampling_in_a_training_run_leaves_its_parts_alone(pipeline):
    scheduler = make_noise_scheduler()
    borrowed = ChampPipeline.from_parts(pipeline.model, pipeline.frozen, scheduler)
    assert borrowed.model is pipeline.model and borrowed.frozen is pipeline.frozen
    assert borrowed.scheduler is not scheduler
    before = pipeline.unet.attn_processors
    sample(borrowed, *make_inputs())
    assert scheduler.num_inference_steps is None
    assert all(pipeline.unet.attn_processors[name] is before[name] for name in before)


def test_xformers_goes_through_our_own_attention(pipeline):
    with pytest.raises(ModelError, match="xformers"):
        pipeline.enable_xformers_memory_efficient_attention()  # not installed, or no GPU
    names = {type(processor).__name__ for processor in pipeline.unet.attn_processors.values()}
    assert "ReferenceReadAttention" in names


SOLVERS = {
    "euler, which scales its input": (EulerDiscreteScheduler, {}),
    "with noise of its own in every step": (EulerAncestralDiscreteScheduler, {}),
    "multistep": (DPMSolverMultistepScheduler, {"solver_order": 2}),
}


@pytest.mark.parametrize("case", SOLVERS)
@torch.no_grad()
def test_any_solver_of_diffusers_gets_what_it_needs(pipeline, monkeypatch, case):
    kind, options = SOLVERS[case]
    schedule = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    monkeypatch.setattr(pipeline, "scheduler", kind(**schedule, **options))
    references, guidance = make_inputs()
    ours = [sample(pipeline, references, guidance, num_inference_steps=3, seed=5) for _ in range(2)]
    assert torch.equal(*ours)  # nothing of the first call is left in the scheduler
    scheduler, generator = kind(**schedule, **options), torch.Generator().manual_seed(5)
    scheduler.set_timesteps(3)
    latents = torch.randn(1, NUM_FRAMES, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    takes_noise = {"generator": generator} if kind is EulerAncestralDiscreteScheduler else {}
    tokens = pipeline.frozen.encode_image_tokens(clip_image_transform(references[0])[None])
    bank = pipeline.model.encode_reference(pipeline.frozen.encode_reference(references), tokens)
    features = pipeline.model.encode_guidance(guidance, (8, 8))
    for timestep in scheduler.timesteps:
        noisy = scheduler.scale_model_input(latents, timestep)
        times = timestep.expand(1)
        with_all = pipeline.model.denoise(noisy, times, tokens, bank, features)
        without = pipeline.model.denoise(noisy, times, 0 * tokens, None, features)
        guided = without + 3.5 * (with_all - without)
        latents = scheduler.step(guided, timestep, latents, **takes_noise).prev_sample
    assert torch.allclose(ours[0], latents, rtol=1e-4, atol=1e-4 * latents.abs().max())


def test_an_interval_of_noise_levels_is_guided(pipeline, monkeypatch):
    calls = count_calls(pipeline, monkeypatch)
    inputs = make_inputs()
    sample(pipeline, *inputs, num_inference_steps=4, guidance_interval=(0.5, 3.0))
    levels = noise_levels(pipeline.scheduler)
    guided = int(((levels > 0.5) & (levels <= 3.0)).sum())
    assert 0 < guided < 4 and len(calls) == 4 + guided
    everywhere = sample(pipeline, *inputs, guidance_interval=(0.0, float("inf")))
    assert torch.equal(everywhere, sample(pipeline, *inputs))
    nowhere = sample(pipeline, *inputs, guidance_interval=(0.0, 1e-6), guidance_scales={"pose": 2.0})
    assert torch.equal(nowhere, sample(pipeline, *inputs, guidance_scale=1.0))


def test_two_grids_take_turns(pipeline, monkeypatch):
    references, guidance = make_inputs(num_frames=14)
    seen, predict = [], Denoiser.predict

    def watched(self, latents, timestep, grid, scales):
        seen.append([window.start for window in grid.windows])
        return predict(self, latents, timestep, grid, scales)

    monkeypatch.setattr(Denoiser, "predict", watched)
    options = {"num_inference_steps": 3, "guidance_scale": 1.0}
    two = sample(pipeline, references, guidance, window_grids=2, **options)
    assert seen == [[0, 6], [0, 3, 6], [0, 6]]
    assert two.isfinite().all() and not torch.equal(two, sample(pipeline, references, guidance, **options))


def test_windows_can_start_from_the_same_noise(pipeline):
    references, guidance = make_inputs(num_frames=14)
    options = {"guidance_scale": 1.0, "num_inference_steps": 1}
    one, again = (sample(pipeline, references, guidance, shared_noise=True, **options) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, sample(pipeline, references, guidance, **options))
    short = make_inputs(num_frames=8)  # one window: nothing to share
    assert torch.equal(sample(pipeline, *short, shared_noise=True), sample(pipeline, *short))


def test_parts_of_a_clip_are_its_frames(pipeline, monkeypatch):
    references, guidance = make_inputs(num_frames=11)
    frames = sample(pipeline, references, guidance, output_type="np")
    latents = sample(pipeline, references, guidance)
    for at_a_time, lengths in ((1, [8, 3]), (16, [11])):  # an autoencoder takes up to eight images at once
        parts = list(pipeline.decode_parts(latents, at_a_time))
        assert [len(part) for part in parts] == lengths and parts[0].dtype == np.uint8
        np.testing.assert_array_equal(np.concatenate(parts), np.round(255 * frames[0]).astype(np.uint8))
    monkeypatch.setattr(type(pipeline.frozen), "cpu_pixels", 3 * SIZE * SIZE)
    assert [len(part) for part in pipeline.decode_parts(latents[0], 7)] == [6, 5]
    with pytest.raises(ModelError, match="one clip"):
        next(pipeline.decode_parts(latents.expand(2, -1, -1, -1, -1)))


WRONG_INPUTS = {
    "no guidance": ({"guidance": {}}, "no guidance.*music, pose"),
    "an untrained type": ({"guidance": {"depth": torch.zeros(1, 4, 1, 8, 8)}}, "'depth'.*music, pose"),
    "lengths that differ": (
        {"guidance": {"music": torch.zeros(1, 4, 5), "pose": torch.zeros(1, 3, 18, 3)}},
        "music 1 x 4, pose 1 x 3",
    ),
    "two clips for one reference": ({"guidance": {"music": torch.zeros(2, 4, 5)}}, "music 2 x 4"),
    "a size that the VAE cannot halve": ({"height": 60, "width": 64}, "60x64.*multiples of 8"),
    "a reference of another size": ({"height": 128, "width": 64}, r"expected \[B, 3, 128, 64\]"),
    "an unknown output type": ({"output_type": "mp4"}, "np, pt, pil, latent"),
    "more frames than positions": ({"context_frames": 33}, "1 to 32 frames"),
    "an overlap without end": ({"context_frames": 4, "context_overlap": 4}, "0 to 3"),
    "three grids of windows": ({"window_grids": 3}, "choose 1 or 2"),
    "a scale of a type that is not there": (
        {"guidance": {"music": torch.zeros(1, 4, 5)}, "guidance_scales": {"pose": 1.0}},
        "'pose'.*given is music",
    ),
    "an unknown tensor for the callback": (
        {"callback_on_step_end_tensor_inputs": ["noise"]},
        "'noise'.*latents",
    ),
    "noise that is given and shared": (
        {"latents": torch.zeros(1, 4, 4, 8, 8), "shared_noise": True},
        "no shared_noise",
    ),
    "latents of another shape": ({"latents": torch.zeros(1, 3, 4, 8, 8)}, r"expected \[1, 4, 4, 8, 8\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_inputs_are_named(pipeline, case):
    options, message = WRONG_INPUTS[case]
    references, guidance = make_inputs()
    with pytest.raises(ModelError, match=message):
        sample(pipeline, references, **({"guidance": guidance} | options))
