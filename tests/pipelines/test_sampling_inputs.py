"""Inputs of sampling: one clip or several, tensors or sources that are read when they are asked for."""

import pytest
import torch
from PIL import Image

from models import ModelError
from pipelines.champ_pipeline import ChampPipeline
from pipelines.sampling_inputs import as_batch, check_generators, check_guidance, check_scales
from tests.pipelines.tiny_pipeline import make_inputs, make_pipeline, sample


@pytest.fixture(scope="module")
def pipeline(tiny_base) -> ChampPipeline:
    return make_pipeline(tiny_base)


class CountingSource:
    """Guidance of one clip that notes what is read of it."""

    def __init__(self, values: torch.Tensor):
        self.values, self.shape, self.read = values, tuple(values.shape), []

    def __getitem__(self, frames: slice) -> torch.Tensor:
        self.read.append((frames.start, frames.stop))
        return self.values[frames]


def test_guidance_may_be_read_window_by_window(pipeline, monkeypatch):
    references, guidance = make_inputs(num_frames=11)
    expected = sample(pipeline, references, guidance)
    source = CountingSource(guidance["pose"][0])
    ours = sample(pipeline, references[0], {"music": guidance["music"][0], "pose": source})
    assert torch.equal(ours, expected)
    assert source.read == [(0, 8), (3, 11)]  # once, as the features are kept
    monkeypatch.setattr(ChampPipeline, "kept_feature_bytes", 0)
    assert torch.equal(sample(pipeline, references, guidance | {"pose": source}), expected)


def test_lists_of_clips(pipeline):
    references, guidance = make_inputs(num_clips=2)
    expected = sample(pipeline, references, guidance)
    clips = [{name: condition[clip] for name, condition in guidance.items()} for clip in range(2)]
    assert torch.equal(sample(pipeline, list(references), clips), expected)
    for other in ({"pose": clips[1]["pose"]}, clips[1] | {"pose": clips[1]["pose"][:2]}):
        with pytest.raises(ModelError, match="is not the same in all of them"):
            as_batch(list(references), [clips[0], other])


def test_a_batch_axis_comes_with_one_image():
    references, guidance = as_batch(Image.new("RGB", (8, 8)), {"music": torch.zeros(4, 5)})
    assert len(references) == 1 and guidance["music"].shape == (1, 4, 5)
    assert as_batch([], []) == ([], {})


def test_numbers_that_do_not_fit_are_named():
    with pytest.raises(ModelError, match="pose 1 x 4.*for 2 reference images"):
        check_guidance({"pose": CountingSource(torch.zeros(4, 18, 3))}, 2, ["pose"])
    assert check_guidance({"pose": CountingSource(torch.zeros(4, 18, 3))}, 1, ["pose"]) == 4
    assert check_scales({"pose": 0, "music": 2.0}, {"pose": 1, "music": 2}) == {"music": 2.0}
    with pytest.raises(ModelError, match="2 generators for 3 videos"):
        check_generators([torch.Generator(), torch.Generator()], 3)
    check_generators(None, 3)
