import pytest
import torch

from models.music_to_pose.objective import MusicToPoseObjective, make_noise_scheduler, weighted_mean

NAMES = {"position", "velocity", "acceleration", "bone", "foot"}


@pytest.fixture
def batch(dance):
    track, reference = (points[..., :18, :] for points in dance)
    torch.manual_seed(2)
    return {
        "key_points": torch.stack([track[:8], track[8:]]),
        "reference_pose": torch.stack([reference, reference]),
        "music": torch.randn(2, 8, 14),
    }


def test_losses(make_model, batch):
    model = make_model()
    objective = MusicToPoseObjective(make_noise_scheduler(), music_dropout=0.0, velocity_weight=2.0)
    draw = objective.draw((2, 8, 37), [5, 6], ["rhythm", "timbre", "harmony"])
    losses = objective.losses(model, batch, draw)
    assert set(losses) == NAMES
    assert all(loss.shape == (2,) and loss.isfinite().all() for loss in losses.values())
    total = objective(model, batch, draw)
    weights = {"velocity": 2.0}
    assert total.item() == pytest.approx(sum(weights.get(n, 1) * losses[n].mean().item() for n in NAMES))
    total.backward()
    alone = {name: part[1:] for name, part in batch.items()}
    second = objective.losses(model, alone, objective.draw((1, 8, 37), [6], ["rhythm", "timbre", "harmony"]))
    for name in NAMES:  # a sample's draws and loss are its own
        torch.testing.assert_close(second[name], losses[name][1:])


def test_absent_points_do_not_count(make_model, batch):
    model = make_model()
    objective = MusicToPoseObjective(make_noise_scheduler())
    draw = objective.draw((2, 8, 37), [5, 6], ["rhythm", "timbre", "harmony"])
    batch["key_points"][:, :, 16:] = 0
    losses = objective.losses(model, batch, draw)
    batch["key_points"][:, :, 16:, :2] = torch.randn(2, 8, 2, 2)  # confidence stays 0
    for name, again in objective.losses(model, batch, draw).items():
        torch.testing.assert_close(again, losses[name])
    batch["key_points"] = torch.zeros_like(batch["key_points"])  # a window behind the end of a take
    assert all((loss == 0).all() for loss in objective.losses(model, batch, draw).values())


def test_groups_are_dropped_as_often_as_asked():
    objective = MusicToPoseObjective(
        make_noise_scheduler(), music_dropout=0.25, group_dropout={"timbre": 0.5, "harmony": 1.0}
    )
    mask = objective.draw((2000, 1, 1), range(2000), ["rhythm", "timbre", "harmony"]).music_mask
    shares = [mask[name].float().mean().item() for name in ("rhythm", "timbre", "harmony")]
    assert shares == pytest.approx([0.75, 0.375, 0], abs=0.03)
    assert not (mask["timbre"] & ~mask["rhythm"]).any()


def test_long_bones_and_sliding_feet_cost(make_model, batch):
    model = make_model()
    objective = MusicToPoseObjective(make_noise_scheduler())
    draw = objective.draw((2, 8, 37), [5, 6], ["rhythm", "timbre", "harmony"])
    assert (objective.losses(model, batch, draw)["bone"] == 0).all()  # no limits yet
    model.bone_limits.fill_(0)
    assert (objective.losses(model, batch, draw)["bone"] > 0).all()
    batch["key_points"] = batch["key_points"][:, :1].expand(-1, 8, -1, -1)
    assert (objective.losses(model, batch, draw)["foot"] > 0).all()


def test_weighted_mean():
    errors = torch.tensor([[1.0, 3, 100], [1, 1, 1]])
    assert weighted_mean(errors, torch.tensor([[1.0, 1, 0], [0, 0, 0]])).tolist() == [2, 0]
