"""A step's prediction: the formula of guidance, its cost in calls, features that are kept or made anew."""

import pytest
import torch
from torch import Tensor

from pipelines.champ_pipeline import ChampPipeline
from pipelines.context_windows import make_grids
from pipelines.guided_prediction import Denoiser, GuidanceScales, WindowFeatures, repeat_clips
from tests.pipelines.tiny_pipeline import count_calls, make_inputs, make_pipeline, sample

NUM_FRAMES, DEVICE = 11, torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tiny_base) -> ChampPipeline:
    return make_pipeline(tiny_base)


@torch.no_grad()
def make_denoiser(pipeline: ChampPipeline, **options) -> tuple[Denoiser, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    references, guidance = make_inputs(NUM_FRAMES)
    bank = pipeline.model.encode_reference(pipeline.frozen.encode_reference(references), torch.ones(1, 1, 32))
    features = WindowFeatures(pipeline.model, guidance, (8, 8), DEVICE, **options)
    tokens = torch.randn(1, 1, 32, generator=generator)
    return Denoiser(pipeline.model, pipeline.model.project_reference(bank), tokens, features), guidance


@torch.no_grad()
def test_guidance_is_a_sum_of_differences(pipeline):
    denoiser, guidance = make_denoiser(pipeline, left_out=("music", "pose"))
    latents = torch.randn(1, NUM_FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    (grid,), time = make_grids(NUM_FRAMES, NUM_FRAMES, 0), torch.tensor(500)

    def predict(types, tokens=denoiser.image_tokens, bank=denoiser.bank):
        features = pipeline.model.encode_guidance({name: guidance[name] for name in types}, (8, 8))
        return pipeline.model.denoise(latents, time[None], tokens, bank, features)

    everything = predict(["music", "pose"])
    nothing_seen = predict(["music", "pose"], 0 * denoiser.image_tokens, None)
    expected = nothing_seen + 2.5 * (everything - nothing_seen)
    expected = expected + 0.7 * (everything - predict(["pose"])) - 0.3 * (everything - predict(["music"]))
    ours = denoiser.predict(latents, time, grid, GuidanceScales(2.5, {"music": 0.7, "pose": -0.3}))
    assert torch.allclose(ours, expected, atol=1e-5)
    without = denoiser.predict(latents, time, grid, GuidanceScales(1.0, {"music": 0.7}))
    assert torch.allclose(without, everything + 0.7 * (everything - predict(["pose"])), atol=1e-5)


def test_each_scale_costs_a_call_where_it_is_not_zero(pipeline, monkeypatch):
    calls, inputs = count_calls(pipeline, monkeypatch), make_inputs()
    for scales, expected in ((None, 2), ({"music": 0.0}, 2), ({"music": 1.0, "pose": 0}, 3)):
        calls.clear()
        sample(pipeline, *inputs, guidance_scales=scales, num_inference_steps=1)
        assert len(calls) == expected


def test_scales_hold_in_their_interval():
    scales = GuidanceScales(3.5, {"pose": 1.0}, interval=(1.0, 5.0))
    assert scales.at(2.0, 3.0) == GuidanceScales(2.0, {"pose": 1.0}, interval=(1.0, 5.0))
    assert scales.at(2.0, 0.5) == scales.at(2.0, float("inf")) == GuidanceScales(1.0)
    assert GuidanceScales(3.5).at(2.0, float("inf")) == GuidanceScales(2.0)


@torch.no_grad()
def test_features_are_kept_while_they_are_few(pipeline):
    windows = [slice(0, 8), slice(3, NUM_FRAMES)]
    all_kept = make_denoiser(pipeline)[0].features
    (one,) = all_kept.of(windows[0]).values()
    num_bytes = sum(part.nbytes for part in one)
    assert all_kept.of(windows[0]) is all_kept.of(windows[0])
    few_kept = make_denoiser(pipeline, free_bytes=num_bytes)[0].features
    none_kept = make_denoiser(pipeline, free_bytes=num_bytes - 1)[0].features
    for window in windows:
        for features in (few_kept, none_kept):
            for _ in range(2):
                pairs = zip(features.of(window)[None], all_kept.of(window)[None], strict=True)
                assert all(torch.equal(ours, expected) for ours, expected in pairs)
    assert list(few_kept.kept) == [(0, 8)] and few_kept.free_bytes == 0
    assert not none_kept.kept


def test_without_room_for_features_the_bits_are_the_same(pipeline, monkeypatch):
    inputs = make_inputs(NUM_FRAMES)
    options = {"window_grids": 2, "guidance_scales": {"pose": 1.0}}
    before = sample(pipeline, *inputs, **options)
    monkeypatch.setattr(ChampPipeline, "kept_feature_bytes", 0)
    assert torch.equal(sample(pipeline, *inputs, **options), before)


def test_copies_of_a_clip_lie_side_by_side():
    assert repeat_clips(torch.tensor([[1], [2]]), 2).tolist() == [[1], [1], [2], [2]]
    assert repeat_clips(None, 2) is None
