"""A model whose music and poses are by recipes of the tests' own, and raw videos whose dance is known."""

import numpy as np
import pytest
import torch

import sample_guidance
from models import ChampModel, FrozenEncoders, create_guidance_encoders
from pipelines.champ_pipeline import ChampPipeline
from sampling.outputs import ClipFile
from training.objective import make_noise_scheduler

from ..preparation.conftest import MARKER, write_raw  # noqa: F401 (a fixture)

RATE = 8


@pytest.fixture
def no_beats(monkeypatch):
    """Beats are librosa's, which takes seconds to load."""
    monkeypatch.setattr("preparation.piece_writing.find_beats", lambda sound, rate: (0.0, np.zeros(0)))


@pytest.fixture(scope="session")
def save_model(tiny_base, tmp_path_factory):
    """save_model(**settings of the pipeline): a model of random weights, as training would write it."""

    def save(types=("music", "pose"), channels=(2, 134), **settings):
        torch.manual_seed(0)
        encoders = create_guidance_encoders(list(types), list(channels), 32, block_out_channels=(8, 8, 8, 32))
        model = ChampModel.from_pretrained_sd(tiny_base, encoders)
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        settings = {"height": 64, "width": 64, "sequence_length": 8, "frame_rate": float(RATE)} | settings
        frozen = FrozenEncoders.from_pretrained(tiny_base)
        pipeline = ChampPipeline.from_parts(model, frozen, make_noise_scheduler(), **settings)
        path = tmp_path_factory.mktemp("model") / "final"
        pipeline.save_pretrained(path)
        return path

    return save


@pytest.fixture(scope="session")
def final(save_model):
    return save_model(music_recipe=f"{MARKER}:level", pose_recipe=f"{MARKER}:find_markers")


@pytest.fixture(scope="session")
def raw(write_raw, tmp_path_factory):  # noqa: F811
    """A raw video of 2 s, 12 frames a second, with clicks."""
    return write_raw(tmp_path_factory.mktemp("raw") / "dance.mp4")


@pytest.fixture
def flags(final, raw, tiny_data, tmp_path, no_beats):
    """The flags of a quick run, as a dict; None: without a value, False: left out."""
    return {
        "model_path": final, "reference_image": tiny_data / "reference_images" / "dance_001.png",
        "driving_video": raw, "num_seconds": 1, "retarget": "none", "output": tmp_path / "out" / "clip.mp4",
        "num_inference_steps": 1, "guidance_scale": 1, "device": "cpu",
    }  # fmt: skip


@pytest.fixture(scope="session")
def words():
    """words(flags): the command line of a dict of flags."""

    def of(flags: dict) -> list[str]:
        argv = []
        for name, value in flags.items():
            if value is not False:
                values = [] if value is None else value if isinstance(value, list) else [value]
                argv += [f"--{name}", *map(str, values)]
        return argv

    return of


@pytest.fixture
def run(words):
    """run(flags): the exit code of the script."""
    return lambda flags: sample_guidance.main(words(flags))


@pytest.fixture
def written(monkeypatch):
    """{name of a file: the parts [n, H, W, 3] that were encoded into it}."""
    parts, original = {}, ClipFile.write

    def write(self, frames):
        parts.setdefault(self._path.name, []).append(frames.copy())
        return original(self, frames)

    monkeypatch.setattr(ClipFile, "write", write)
    return parts
