"""The objective is CHAMP's: against the original's tensors, and against the textbook."""

import json

import pytest
import torch
from safetensors.torch import load_file

from system.errors import ConfigError
from training.objective import DiffusionObjective, bias_timesteps, make_noise_scheduler, mix_seed

CASES = ("s2_all_bank32", "s1_bank32")


class EchoModel:
    """Returns its noisy latents and remembers what it was called with."""

    def __call__(self, noisy_latents, *arguments, **masks):
        self.arguments, self.masks = (noisy_latents, *arguments), masks
        return noisy_latents


def conditions_for(latents):
    batch = len(latents)
    return {
        "reference_latents": latents[:, 0],
        "image_tokens": torch.ones(batch, 1, 8),
        "guidance": {"music": torch.zeros(batch, latents.shape[1], 3)},
    }


def test_schedule_is_the_originals(golden_dir):
    golden = load_file(golden_dir / "cases" / "schedulers.safetensors")["train_alphas_cumprod"]
    torch.testing.assert_close(make_noise_scheduler().alphas_cumprod, golden, atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_noise_target_weight_and_loss_are_the_originals(golden_dir, case):
    # Channels and frames are in the original's order here; the objective does not look at the layout.
    inputs = load_file(golden_dir / "cases" / f"{case}.inputs.safetensors")
    outputs = load_file(golden_dir / "cases" / f"{case}.outputs.safetensors")
    objective = DiffusionObjective(make_noise_scheduler())
    latents, noise, timesteps = inputs["latents"], inputs["noise"], inputs["timesteps"]
    noisy, target = (
        objective.add_noise(latents, noise, timesteps),
        objective.target(latents, noise, timesteps),
    )
    torch.testing.assert_close(noisy, outputs["noisy_latents"], atol=1e-6, rtol=0)
    torch.testing.assert_close(target, outputs["target"], atol=1e-6, rtol=0)
    torch.testing.assert_close(
        objective.loss_weights(timesteps), outputs["mse_loss_weights"], atol=1e-6, rtol=0
    )
    loss = objective.sample_losses(outputs["model_pred"], target, timesteps).mean()
    recorded = json.loads((golden_dir / "meta.json").read_text())["cases"][case]["loss"]
    assert loss.item() == pytest.approx(recorded, abs=1e-6)


def test_schedule_is_the_textbooks():
    """Zero terminal SNR (arXiv:2305.08891, algorithm 1), written out."""
    roots = torch.cumprod(
        1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0
    ).sqrt()
    roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    found = make_noise_scheduler().alphas_cumprod.double()
    torch.testing.assert_close(found, roots**2, atol=1e-5, rtol=0)
    assert found[-1] == 0


def test_loss_weights_follow_min_snr():
    last, first = torch.tensor([999]), torch.tensor([0])
    objective = DiffusionObjective(make_noise_scheduler(), snr_gamma=5.0)
    assert objective.loss_weights(last).item() == 1.0  # the usual form would give 0
    snr = objective.scheduler.alphas_cumprod[0] / (1 - objective.scheduler.alphas_cumprod[0])
    torch.testing.assert_close(objective.loss_weights(first), (5 / (snr + 1))[None])
    assert DiffusionObjective(make_noise_scheduler(), snr_gamma=None).loss_weights(first).item() == 1.0


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_targets_recover_the_latents(prediction_type):
    objective = DiffusionObjective(make_noise_scheduler(prediction_type))
    latents, noise = torch.randn(3, 2, 4, 2, 2), torch.randn(3, 2, 4, 2, 2)
    timesteps = torch.tensor([0, 500, 900])
    noisy, target = (
        objective.add_noise(latents, noise, timesteps),
        objective.target(latents, noise, timesteps),
    )
    alpha = objective.scheduler.alphas_cumprod[timesteps].view(3, 1, 1, 1, 1)
    recovered = {
        "epsilon": (noisy - (1 - alpha).sqrt() * target) / alpha.sqrt(),
        "sample": target,
        "v_prediction": alpha.sqrt() * noisy - (1 - alpha).sqrt() * target,
    }[prediction_type]
    torch.testing.assert_close(recovered, latents, atol=1e-4, rtol=1e-4)
    assert objective.loss_weights(timesteps).isfinite().all()
    assert (objective.scheduler.alphas_cumprod[-1] == 0) == (prediction_type != "epsilon")


def test_noise_offset_is_one_number_per_clip_and_channel():
    latents = torch.zeros(2, 5, 4, 8, 8)
    seeds = [(0, 1), (0, 2)]
    plain = DiffusionObjective(make_noise_scheduler(), noise_offset=0.0).draw(latents, seeds).noise
    offset = DiffusionObjective(make_noise_scheduler(), noise_offset=0.05).draw(latents, seeds).noise - plain
    assert offset.flatten(3).std(3).max() < 1e-6  # constant over pixels
    assert offset.mean((3, 4)).std(1).max() < 1e-6  # and frames
    assert offset[:, 0, :, 0, 0].unique().numel() == 8


def test_draws_belong_to_the_sample_not_to_the_batch():
    objective = DiffusionObjective(make_noise_scheduler(), guidance_dropout={"music": 0.5, "pose": 0.5})
    latents = torch.zeros(3, 2, 4, 4, 4)
    together = objective.draw(latents, [(7, 0), (7, 1), (7, 2)])
    alone = objective.draw(latents[:1], [(7, 1)])
    assert torch.equal(together.noise[1], alone.noise[0])
    assert together.timesteps[1] == alone.timesteps[0]
    assert together.guidance_mask["pose"][1] == alone.guidance_mask["pose"][0]
    assert len({mix_seed(7, place) for place in range(1000)}) == 1000


def test_dropouts_have_their_shares():
    objective = DiffusionObjective(
        make_noise_scheduler(), reference_dropout=0.1, guidance_dropout={"music": 0.0, "pose": 0.5}
    )
    draw = objective.draw(torch.zeros(2000, 1, 1, 1, 1), [(0, place) for place in range(2000)])
    assert 0.07 < 1 - draw.reference_mask.float().mean() < 0.13
    assert draw.guidance_mask["music"].all()
    assert 0.45 < draw.guidance_mask["pose"].float().mean() < 0.55
    assert draw.timesteps.min() < 20 and draw.timesteps.max() > 979


@pytest.mark.parametrize("strategy", ["none", "earlier", "later"])
def test_biased_timesteps_are_drawn_more_often(strategy):
    weights = bias_timesteps(1000, strategy, 6.0, 0.15)
    objective = DiffusionObjective(make_noise_scheduler(), timestep_weights=weights)
    timesteps = objective.draw(torch.zeros(2000, 1, 1, 1, 1), [(0, place) for place in range(2000)]).timesteps
    shares = (timesteps < 150).float().mean(), (timesteps >= 850).float().mean()
    usual, more, less = 0.15, 0.9 / 1.75, 0.15 / 1.75
    expected = {"none": (usual, usual), "earlier": (more, less), "later": (less, more)}[strategy]
    assert shares == pytest.approx(expected, abs=0.04)


def test_a_sample_without_reference_has_a_zero_token():
    objective = DiffusionObjective(make_noise_scheduler(), reference_dropout=0.5)
    latents = torch.randn(8, 2, 4, 4, 4)
    draw = objective.draw(latents, [(0, place) for place in range(8)])
    model = EchoModel()
    objective(model, latents, conditions_for(latents), draw)
    image_tokens = model.arguments[3]
    assert torch.equal(image_tokens[:, 0, 0].bool(), draw.reference_mask)
    assert torch.equal(model.masks["reference_mask"], draw.reference_mask)
    assert 0 < draw.reference_mask.sum() < 8


def test_extra_loss_is_added_and_gets_the_guidance():
    latents = torch.randn(2, 2, 4, 4, 4)
    plain = DiffusionObjective(make_noise_scheduler())
    draw, conditions = plain.draw(latents, [(0, 0), (0, 1)]), conditions_for(latents)

    def custom_loss(model_pred, target, guidance_condition):
        assert model_pred.shape == target.shape == latents.shape
        return guidance_condition["music"].sum() + 3.0

    extended = DiffusionObjective(make_noise_scheduler(), extra_loss=custom_loss)
    difference = extended(EchoModel(), latents, conditions, draw) - plain(
        EchoModel(), latents, conditions, draw
    )
    assert difference.item() == pytest.approx(3.0)


def test_extra_loss_of_a_wrong_shape_is_named():
    latents = torch.randn(1, 2, 4, 4, 4)

    def custom_loss(model_pred, target, guidance_condition):
        return (model_pred - target).square()

    objective = DiffusionObjective(make_noise_scheduler(), extra_loss=custom_loss)
    draw = objective.draw(latents, [(0, 0)])
    with pytest.raises(
        ConfigError, match=r"custom_loss returned a tensor of shape \[1, 2, 4, 4, 4\].*scalar"
    ):
        objective(EchoModel(), latents, conditions_for(latents), draw)


# ---- regions ----


def hands_in_a_corner(latents):
    """Key points whose right hand lies in the first two rows and columns of 8 x 8 latents."""
    points = torch.zeros(*latents.shape[:2], 134, 3)
    points[..., 113:134, :] = torch.tensor([0.125, 0.125, 1.0])
    points[..., 113, :2], points[..., 114, :2] = 0.04, 0.21
    return points


def region_losses(weights, extra_loss=None):
    """Return (loss, squared errors [B, F, 4, 8, 8], weights of the samples [B]) of two clips."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 3, 4, 8, 8, generator=generator)
    objective = DiffusionObjective(make_noise_scheduler(), region_weights=weights, extra_loss=extra_loss)
    conditions = conditions_for(latents)
    conditions["guidance"]["pose"] = hands_in_a_corner(latents)
    draw = objective.draw(latents, [(0, 0), (0, 1)])
    loss = objective(EchoModel(), latents, conditions, draw)
    noisy = objective.add_noise(latents, draw.noise, draw.timesteps)
    error = (noisy - objective.target(latents, draw.noise, draw.timesteps)).square()
    return loss, error, objective.loss_weights(draw.timesteps)


def test_region_weights_of_one_are_the_same_bits():
    plain, _, _ = region_losses({})
    assert torch.equal(region_losses({"hands": 1.0, "face": 1.0})[0], plain)
    assert torch.equal(region_losses({"face": 7.0})[0], plain)  # no face is seen


def test_an_error_in_a_region_counts_so_many_times():
    loss, error, loss_weights = region_losses({"hands": 3.0})
    weights = torch.ones(8, 8)
    weights[:2, :2] = 3
    expected = ((error * weights).mean((1, 2, 3, 4)) * loss_weights).mean()
    torch.testing.assert_close(loss, expected)
    own, _, _ = region_losses({"hands": 3.0}, lambda *_: torch.tensor(2.0))
    assert own.item() == pytest.approx(loss.item() + 2)  # a user's own term is added as ever


def test_which_conditions_the_loss_reads():
    shapes = {"music": (35,), "pose": (134, 3), "depth": (1, 64, 64)}
    scheduler = make_noise_scheduler()
    assert DiffusionObjective(scheduler).types_read(shapes) == []
    assert DiffusionObjective(scheduler, region_weights={"face": 2.0}).types_read(shapes) == ["pose"]
    assert DiffusionObjective(scheduler, extra_loss=lambda *_: 0).types_read(shapes) == [*shapes]
