"""A metric added to the validation is one file: it registers itself, and TensorBoard shows its numbers."""

import pytest
import torch

from evaluation import validation_metrics
from evaluation.validation_metrics import ValidationRun, measure_validation
from tests.test_train_guidance import flags, run, scalars  # noqa: F401 (fixture)

METRIC = """
from evaluation.validation_metrics import register_validation_metric


@register_validation_metric("brightness")
def brightness(run):
    truth = run.shown["frames"]  # [F, 3, H, W] in [-1, 1]
    return {"brightness/error": (run.prediction.mean() - truth.mean()).abs().item()}
"""


@pytest.fixture(autouse=True)
def own_metrics(monkeypatch):
    monkeypatch.setattr(validation_metrics, "_METRICS", dict(validation_metrics._METRICS))


def test_a_metric_of_ones_own_is_one_file(flags, tmp_path):  # noqa: F811
    (tmp_path / "my_metric.py").write_text(METRIC)
    assert run(flags, "--max_train_steps", 1, "--guidance_modules", tmp_path / "my_metric.py") == 0
    assert 0 <= scalars(tmp_path / "logs", "brightness/error")[0] < 2
    assert len(scalars(tmp_path / "logs", "val_loss")) == 1  # this repository's own are there as well


def test_a_clip_is_sampled_once_and_only_when_it_is_asked_for(monkeypatch):
    sampled = []
    asked = ValidationRun(None, None, [], 1, {}, sample=lambda: sampled.append(1) or "clip")
    metrics = {"graph": lambda run: {"graph": torch.is_grad_enabled()}}
    monkeypatch.setattr(validation_metrics, "_METRICS", metrics)
    monkeypatch.setattr(validation_metrics.importlib, "import_module", lambda name: None)
    assert measure_validation(asked) == {"graph": False} and not sampled
    assert (asked.prediction, asked.prediction) == ("clip", "clip") and len(sampled) == 1
