import pytest
import torch

from models.music_to_pose.model import MusicToPoseModel
from models.music_to_pose.representation import KEY_POINT_COUNTS
from models.music_to_pose.statistics import Statistics

from .conftest import GROUPS


@pytest.mark.parametrize("num_key_points", KEY_POINT_COUNTS)
def test_shapes(make_model, make_inputs, num_key_points):
    model = make_model(num_key_points)
    inputs = make_inputs(model, num_frames=5)
    assert model(*inputs).shape == inputs[0].shape


def test_a_dropped_group_is_not_heard(make_model, make_inputs):
    model = make_model()
    noisy, timesteps, music, reference = make_inputs(model)
    mask = {"harmony": torch.tensor([True, False])}
    heard = model(noisy, timesteps, music, reference, mask)
    music[..., GROUPS["harmony"]] += 1
    changed = model(noisy, timesteps, music, reference, mask)
    assert not torch.allclose(heard[0], changed[0], atol=1e-4)
    torch.testing.assert_close(heard[1], changed[1])


def test_statistics(make_model, dance):
    model = make_model()
    track, reference = (points[..., :18, :].clone() for points in dance)
    track[:, 16:] = 0  # ears are never seen
    music = torch.arange(16.0)[:, None].repeat(1, model.music_features.num_columns)
    music[:, 0] = 2
    statistics = Statistics(model)
    for part in (slice(0, 5), slice(5, 16)):
        statistics.add(track[part], reference, music[part])
    statistics.give_to(model)
    assert model.music_mean[:2].tolist() == [2, 7.5]
    torch.testing.assert_close(model.music_std[:2], torch.tensor([1, music[:, 1].std(correction=0)]))
    values, _ = model.representation.encode(track[None], reference[None])
    lengths = values[0, :, 3:].unflatten(-1, (-1, 2)).norm(dim=-1).amax(0)
    is_seen = torch.tensor([point < 16 for point in model.representation.points])
    assert (model.bone_limits[is_seen] >= 1.05 * lengths[is_seen] - 1e-6).all()
    assert (model.bone_limits[is_seen] <= 1.05 * lengths[is_seen] + 0.02).all()


def test_saved_and_loaded(make_model, make_inputs, tmp_path):
    model = make_model()
    model.set_statistics((torch.rand(37), torch.rand(37) + 1), (torch.rand(14), torch.rand(14) + 1))
    model.save_pretrained(tmp_path)
    loaded = MusicToPoseModel.from_pretrained(tmp_path)
    inputs = make_inputs(model)
    assert torch.equal(loaded(*inputs), model(*inputs))
    assert loaded.music_features.groups == model.music_features.groups
    assert torch.equal(loaded.bone_limits, model.bone_limits)
