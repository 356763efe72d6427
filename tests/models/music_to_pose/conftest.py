"""A small model and a drawn dance for it."""

import numpy as np
import pytest
import torch

from demo.dancer import choreograph, draw_lots, key_points, standing
from demo.music import compose_song
from models.music_to_pose.model import MusicToPoseModel

NUM_FEATURES, BEAT, RATE = 6, 5, 10.0
GROUPS = {"rhythm": [0, 5], "timbre": [1, 2], "harmony": [3, 4]}


@pytest.fixture(scope="session")
def dance():
    """(key points [F, 134, 3], reference [134, 3]), all points present, float32."""
    generator = np.random.default_rng(1)
    dancer, song = draw_lots(generator), compose_song(generator, 2)
    postures = choreograph(dancer, song, np.arange(16) / RATE, generator)
    track = np.stack([key_points(dancer, posture) for posture in postures])
    track[..., 2] = 1  # a hand may leave the drawn frame
    reference = key_points(dancer, standing(dancer))
    return torch.tensor(track).float(), torch.tensor(reference).float()


@pytest.fixture
def make_model():
    """Makes a small model whose output is not zero."""

    def make(num_key_points=18, **options):
        torch.manual_seed(0)
        model = MusicToPoseModel(
            num_key_points, NUM_FEATURES, GROUPS, BEAT, RATE,
            **{"sequence_length": 8, "hidden_size": 16, "num_layers": 2, "num_heads": 2} | options,
        )  # fmt: skip
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        return model.eval()

    return make


@pytest.fixture
def make_inputs():
    """Makes noisy values, timesteps, music and an encoded reference for a model."""

    def make(model, num_frames=8, batch=2):
        torch.manual_seed(1)
        representation = model.representation
        return (
            torch.randn(batch, num_frames, representation.num_values),
            torch.tensor([3, 900])[:batch],
            torch.randn(batch, num_frames, model.music_features.num_columns),
            torch.randn(batch, representation.num_reference_values).sign(),
        )

    return make
