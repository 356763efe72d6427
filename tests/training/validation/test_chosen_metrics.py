"""Metrics by name: what no run has, and what this run's clips cannot give, ends it before it starts."""

import pytest
import torch

from evaluation import validation_metrics
from evaluation.validation_metrics import register_validation_metric
from system.errors import ConfigError
from training.settings.fields import RunSettings
from training.validation.chosen_metrics import check_names, check_on_clips, clip_metrics


class Clips:
    """A data set of clips [F, 3, 32, 32], with key points of these numbers where there are any."""

    def __init__(self, num_frames, seen=None):
        torch.manual_seed(0)
        self.frames, self.read = torch.rand(num_frames, 3, 32, 32) * 2 - 1, []
        points = torch.rand(num_frames, 134, 3) * 0.2 + 0.4
        points[..., 2] = 0
        points[:, seen or [], 2] = 1
        self.guidance = {} if seen is None else {"pose": points}

    def read_clip(self, index, start):
        self.read.append(index)
        return {"sample_id": f"clip_{index}", "frames": self.frames, "guidance": self.guidance}


def test_what_is_asked_for_is_measured_once():
    settings = RunSettings(validation_metrics=["ssim", "psnr", "ssim"], keep_best="l1")
    check_names(settings)
    assert clip_metrics(settings) == ["ssim", "psnr", "l1"]
    assert clip_metrics(RunSettings(keep_best="val_loss")) == clip_metrics(RunSettings()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_metrics": ["psnr", "fvd"]}, "--validation_metrics fvd: choose from psnr, .*dtssd"),
        ({"validation_metrics": ["pnsr"]}, "did you mean psnr"),
        ({"validation_metrics": ["val_loss"]}, "val_loss: choose"),  # it is always logged
        ({"keep_best": "train_loss"}, "--keep_best train_loss: .*val_loss.*did you mean val_loss"),
        ({"keep_best": "psnr_legacy"}, "--keep_best psnr_legacy: choose from .*psnr"),
    ],
)
def test_unknown_names_are_refused_with_the_list(settings, message):
    with pytest.raises(ConfigError, match=message) as raised:
        check_names(RunSettings(**settings))
    assert "\n" not in str(raised.value)


def test_a_metric_of_the_users_can_be_the_one(monkeypatch):
    for registry in ("_METRICS", "_HIGHER_IS_BETTER"):
        monkeypatch.setattr(validation_metrics, registry, dict(getattr(validation_metrics, registry)))
    register = register_validation_metric("mine", higher_is_better={"mine/error": False})
    register(lambda run: {"mine/error": 1.0})
    check_names(RunSettings(keep_best="mine/error"))
    assert clip_metrics(RunSettings(keep_best="mine/error")) == []


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        (Clips(1), {"validation_metrics": ["psnr", "dtssd"]}, "_metrics dtssd: needs .*two frames"),
        (Clips(3), {"validation_metrics": ["background_flicker"]}, "background_flicker: needs key points"),
        (Clips(3), {"keep_best": "face_psnr"}, "--keep_best face_psnr: needs key points"),
        (Clips(3, [0, 1]), {"keep_best": "hand_psnr"}, "--keep_best hand_psnr: .*hands that are seen"),
    ],
)
def test_what_no_clip_can_give_is_refused(dataset, settings, message):
    with pytest.raises(ConfigError, match=message):
        check_on_clips(dataset, [(0, 0), (1, 0)], RunSettings(**settings))
    assert dataset.read == [0, 1]


def test_what_one_clip_gives_is_enough_and_nothing_is_read_for_nothing():
    dataset = Clips(3, range(134))
    names = ["psnr", "hand_psnr", "face_psnr", "dtssd", "background_flicker"]
    check_on_clips(dataset, [(0, 0)], RunSettings(validation_metrics=names))
    assert dataset.read == [0]
    check_on_clips(dataset, [(0, 0)], RunSettings(keep_best="val_loss"))
    assert dataset.read == [0]
