"""A user's own encoder and loss in a run: they train, and what is wrong with them is told."""

import pytest

from tests.training.runs import final_weights, run, scalars

MY_CODE = """
import torch
from torch import nn
from models import register_guidance_encoder

@register_guidance_encoder("music", kind="vector")
class MyEncoder(nn.Module):
    def __init__(self, guidance_embedding_channels, guidance_input_channels):
        super().__init__()
        self.linear = nn.Linear(guidance_input_channels, guidance_embedding_channels)

    def forward(self, condition):
        return self.linear(condition)

def custom_loss(model_pred, target, guidance_condition):
    assert set(guidance_condition) == {"music", "pose"}
    return 1000.0 + 0 * (model_pred - target).mean()

def wrong_shape(model_pred, target, guidance_condition):
    return (model_pred - target).square().mean(dim=(1, 2, 3, 4))

def not_a_number(model_pred, target, guidance_condition):
    return model_pred.mean() * float("nan")
"""


@pytest.fixture
def my_code(tmp_path):
    """A user's file; what it registers is taken back."""
    from models import guidance_encoder

    path, registered = tmp_path / "my_code.py", dict(guidance_encoder._REGISTRY)
    path.write_text(MY_CODE)
    yield path
    guidance_encoder._REGISTRY.clear()
    guidance_encoder._REGISTRY.update(registered)


def test_a_users_encoder_and_loss(flags, tmp_path, my_code, capsys):
    own = ("--guidance_modules", my_code, "--loss", f"{my_code}:custom_loss", "--max_train_steps", 1)
    assert run(flags, *own) == 0
    assert scalars(tmp_path / "logs", "train_loss")[0] > 1000
    assert "guidance_encoders.encoders.music.linear.weight" in final_weights(tmp_path / "out")
    assert run(flags, "--loss", f"{my_code}:wrong_shape") == 2
    assert "wrong_shape returned a tensor of shape [1]; expected one number" in capsys.readouterr().err


def test_non_finite_steps_are_skipped_and_stop_the_run(flags, my_code, tmp_path, capsys):
    nan = ("--loss", f"{my_code}:not_a_number", "--max_train_steps", 20)
    assert run(flags, *nan) == 1
    console = capsys.readouterr().err
    assert (
        "first in the loss function" in console
        and "10 non-finite steps in a row" in console
        and "Traceback" not in console
    )
    assert "at timestep" in console and "dance_00" in console
    assert scalars(tmp_path / "logs", "steps_skipped") == list(map(float, range(1, 10)))
