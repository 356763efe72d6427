"""Gaps that tell which guidance a model listens to."""

import pytest
import torch

from evaluation.guidance_gaps import EncodedClip, GapProtocol, measure, measure_training_clips
from evaluation.validation_metrics import ValidationRun
from models import GuidanceFeatures
from training.objective import DiffusionObjective, make_noise_scheduler


class ListeningModel:
    """Predicts the sum of the conditions it listens to; each holds one number."""

    def __init__(self, *listens_to):
        self.listens_to = listens_to

    def encode_reference(self, reference_latents, image_tokens):
        return {"bank": reference_latents}

    def encode_guidance(self, guidance, size):
        heard = [guidance[name] for name in self.listens_to if name in guidance]
        return GuidanceFeatures(spatial=None, vector=sum(heard, torch.zeros(1, 2, 1)))

    def denoise(self, noisy, timesteps, tokens, bank, features):
        level = features.vector.mean((1, 2))
        if "reference" in self.listens_to:
            level = level + bank["bank"].mean((1, 2, 3))
        return torch.zeros_like(noisy) + level[:, None, None, None, None]


class EqualTargets(DiffusionObjective):
    """The target is the clip's latents, unweighted."""

    def target(self, latents, noise, timesteps):
        return latents

    def loss_weights(self, timesteps):
        return torch.ones_like(timesteps, dtype=torch.float32)


def clip(name, value, share):
    """A clip of latents `value`, which `share` conditions tell together."""
    part = value / share
    return EncodedClip(
        name, torch.full((1, 2, 4, 4, 4), value), torch.full((1, 4, 4, 4), part), torch.zeros(1, 1, 8),
        {"music": torch.full((1, 2, 1), part), "pose": torch.full((1, 2, 1), part)},
    )  # fmt: skip


OBJECTIVE = EqualTargets(make_noise_scheduler())


def test_losses_inside_and_outside_of_regions():
    points = torch.zeros(1, 2, 134, 3)
    points[:, :, 92:113, :2] = torch.tensor([0.3, 0.1])  # the left hand in one cell of 4 x 4: row 0, column 1
    points[:, :, 92:113, 2] = 1
    shown, hidden = clip("a", 1.0, 0.9), clip("b", 1.0, 0.9)
    shown.latents[:, :, :, 0, 1] = 3.0  # errors of 9 there, of 1 elsewhere: nothing is predicted
    shown.guidance["pose"], hidden.guidance["pose"] = points, 0 * points
    regions = GapProtocol(regions=["hands", "face"])
    scalars = measure(ListeningModel(), OBJECTIVE, [shown, hidden], regions)
    assert scalars["val_loss_region/hands"] == pytest.approx(9) and "val_loss_region/face" not in scalars
    assert scalars["val_loss_region/elsewhere"] == pytest.approx(1)
    plain = measure(ListeningModel(), OBJECTIVE, [shown, hidden], GapProtocol())
    assert plain.keys() == {
        name for name in scalars if name not in ("val_loss_region/hands", "val_loss_region/elsewhere")
    }
    assert all(scalars[name] == value for name, value in plain.items())  # val_loss is weighted by no region


def test_a_gap_says_what_is_listened_to():
    clips = [clip("a", 1.0, 0.9), clip("b", 3.0, 0.9)]
    scalars = measure(ListeningModel("pose"), OBJECTIVE, clips, GapProtocol())
    assert scalars["guidance_gap/pose"] > 1
    assert scalars["guidance_gap_alone/pose"] > 1
    assert scalars["guidance_gap/music"] == scalars["guidance_gap_alone/music"] == 0
    assert scalars["guidance_gap/reference"] == 0
    bins = [scalars[f"val_loss/t{first:03d}-{first + 249:03d}"] for first in (0, 250, 500, 750)]
    assert scalars["val_loss"] == pytest.approx(sum(bins) / 4)
    clips = [clip("a", 1.0, 1.8), clip("b", 3.0, 1.8)]
    both = measure(ListeningModel("pose", "reference"), OBJECTIVE, clips, GapProtocol())
    assert both["guidance_gap/reference"] > 0.1


def test_numbers_do_not_depend_on_the_batch_size_and_repeat():
    clips = [clip("a", 1.0, 1.8), clip("b", 2.0, 1.8), clip("c", 4.0, 1.8)]
    model = ListeningModel("pose", "music")
    one, four = (measure(model, OBJECTIVE, clips, GapProtocol(batch_size=size)) for size in (1, 4))
    assert one == pytest.approx(four)
    assert measure(model, OBJECTIVE, clips, GapProtocol(batch_size=4)) == four
    # This model's loss is the same at every timestep, so gaps at every other one are the same gaps.
    assert measure(model, OBJECTIVE, clips, GapProtocol(gap_stride=2)) == pytest.approx(four)


def test_few_clips_say_less():
    model, protocol = ListeningModel("pose"), GapProtocol()
    same_video = measure(model, OBJECTIVE, [clip("a", 1.0, 0.9), clip("a", 2.0, 0.9)], protocol)
    assert "guidance_gap/pose" in same_video and "guidance_gap/reference" not in same_video
    alone = measure(model, OBJECTIVE, [clip("a", 1.0, 0.9)], protocol)
    assert not any(name.startswith("guidance_gap") for name in alone)
    assert "val_loss" in alone and "guidance_norm/pose" in alone


def test_training_clips_have_the_loss_of_a_validation():
    clips, model = [clip("a", 1.0, 0.9), clip("b", 3.0, 0.9)], ListeningModel("pose")
    run = ValidationRun(model, OBJECTIVE, [], 2, {}, sample=None, training_clips=clips)
    expected = measure(model, OBJECTIVE, clips, GapProtocol())["val_loss"]  # here noise changes no loss
    assert measure_training_clips(run) == {"val_loss_training_clips": pytest.approx(expected)}
    run.training_clips = []
    assert measure_training_clips(run) == {}
