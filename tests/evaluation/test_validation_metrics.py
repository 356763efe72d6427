"""A metric added to the validation is one file: it registers itself, and TensorBoard shows its numbers."""

import pytest
import torch

from evaluation import validation_metrics
from evaluation.validation_metrics import (
    CLIP_METRICS,
    ValidationRun,
    directions,
    key_points_of,
    measure_clip,
    measure_sampled_clips,
    measure_validation,
)
from tests.training.runs import run, scalars

METRIC = """
from evaluation.validation_metrics import register_validation_metric


@register_validation_metric("brightness")
def brightness(run):
    truth = run.shown["frames"]  # [F, 3, H, W] in [-1, 1]
    return {"brightness/error": (run.prediction.mean() - truth.mean()).abs().item()}
"""


@pytest.fixture(autouse=True)
def own_metrics(monkeypatch):
    for registry in ("_METRICS", "_HIGHER_IS_BETTER"):
        monkeypatch.setattr(validation_metrics, registry, dict(getattr(validation_metrics, registry)))


def test_a_metric_of_ones_own_is_one_file(flags, tmp_path):
    (tmp_path / "my_metric.py").write_text(METRIC)
    assert run(flags, "--max_train_steps", 1, "--guidance_modules", tmp_path / "my_metric.py") == 0
    assert 0 <= scalars(tmp_path / "logs", "brightness/error")[0] < 2
    assert len(scalars(tmp_path / "logs", "val_loss")) == 1  # this repository's own are there as well


def test_a_clip_is_sampled_once_and_only_when_it_is_asked_for(monkeypatch):
    sampled = []
    asked = ValidationRun(None, None, [], 1, {}, sample=lambda shown: sampled.append(1) or "clip")
    metrics = {"graph": lambda run: {"graph": torch.is_grad_enabled()}}
    monkeypatch.setattr(validation_metrics, "_METRICS", metrics)
    monkeypatch.setattr(validation_metrics.importlib, "import_module", lambda name: None)
    assert measure_validation(asked) == {"graph": False} and not sampled
    assert (asked.prediction, asked.prediction) == ("clip", "clip") and len(sampled) == 1


def test_metrics_of_sampled_clips_are_means_over_all_clips_that_give_them():
    """Each is sampled once; a hand that one clip alone shows counts there alone."""
    torch.manual_seed(0)
    clips = [{"frames": torch.rand(3, 3, 32, 32) * 2 - 1, "guidance": {"pose": torch.zeros(3, 134, 3)}}
             for _ in range(2)]  # fmt: skip
    points = clips[1]["guidance"]["pose"]
    points[:, -42:] = torch.rand(3, 42, 3) * 0.5 + 0.25
    sampled = []

    def sample(clip):
        sampled.append(clip)
        return clip["frames"] * (0.5 if clip is clips[0] else 1.0)

    names = ("psnr", "l1", "hand_psnr", "face_psnr")
    asked = ValidationRun(None, None, [], 1, clips[0], sample, clip_metrics=names, others=clips[1:])
    found = measure_sampled_clips(asked)
    assert sampled[0] is clips[0] and sampled[1] is clips[1] and len(sampled) == 2
    assert asked.prediction is not None and len(sampled) == 2
    alone = measure_clip(["psnr", "l1"], clips[0], asked.prediction)
    assert found["psnr"] == pytest.approx((alone["psnr"] + 100) / 2)
    assert found["l1"] == pytest.approx(alone["l1"] / 2)
    assert found["hand_psnr"] == 100 and "face_psnr" not in found
    asked.clip_metrics = ()
    assert measure_sampled_clips(asked) == {}


def test_key_points_are_in_pixels_of_the_frames():
    points = torch.tensor([[[0.5, 0.25, 0.9]]])
    clip = {"frames": torch.zeros(1, 3, 20, 40), "guidance": {"music": torch.zeros(1, 35), "pose": points}}
    assert key_points_of(clip)[0, 0] == pytest.approx([20, 5, 0.9])
    del clip["guidance"]["pose"]
    assert key_points_of(clip) is None


def test_every_metric_says_which_way_is_better():
    known = directions()
    assert known["psnr"] and not known["l1"] and not known["val_loss"]
    legacy = {name for name in CLIP_METRICS if name.endswith("_legacy")}
    assert set(CLIP_METRICS) - set(known) == legacy and len(legacy) == 3  # no model is to be chosen by these
