"""Solvers of sampling against closed forms: the exact denoiser of simple data has a known answer."""

import pytest
import torch
from diffusers import DDIMScheduler

from pipelines.schedulers import SCHEDULERS, in_interval, make_scheduler, noise_levels, set_steps
from system.errors import ConfigError
from training.objective import make_noise_scheduler

PREDICTIONS = ("v_prediction", "sample", "epsilon")
STARTS = torch.linspace(-2, 2, 5)[None]  # of the noise


def solve(scheduler, num_steps: int, clean_of) -> torch.Tensor:
    """Sample with the exact denoiser `clean_of(noisy, a)` of some data, at the trained noise levels."""
    kept = torch.cumprod(
        1 - scheduler.betas.double(), dim=0
    )  # 0 at zero SNR, whatever the solver makes of it
    set_steps(scheduler, num_steps)
    assert len(scheduler.timesteps) == num_steps
    noisy = STARTS
    for timestep in scheduler.timesteps:
        a = kept[timestep]
        clean = clean_of(noisy.double(), a)
        noise = (noisy - a.sqrt() * clean) / (1 - a).sqrt()
        velocity = a.sqrt() * noise - (1 - a).sqrt() * clean
        outputs = {"v_prediction": velocity, "sample": clean, "epsilon": noise}
        output = outputs[scheduler.config.prediction_type].float()
        noisy = scheduler.step(output, timestep, noisy).prev_sample
        assert noisy.isfinite().all()
    return noisy


def gaussian(deviation: float):
    """The denoiser of data ~ N(0, deviation^2): the flow takes the noise z to deviation * z."""
    variance = deviation**2
    return lambda noisy, a: a.sqrt() * variance * noisy / (a * variance + 1 - a)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_gaussian_is_reached_as_steps_grow(name, prediction):
    trained = make_noise_scheduler(prediction)
    errors = []
    for num_steps in (5, 25, 125):
        found = solve(make_scheduler(name, trained), num_steps, gaussian(0.5))
        errors.append(float((found - 0.5 * STARTS).abs().max()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.04, errors


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("num_steps", [1, 2, 14, 15, 61])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_single_picture_is_found_in_any_number_of_steps(name, num_steps, prediction):
    scheduler = make_scheduler(name, make_noise_scheduler(prediction))
    found = solve(scheduler, num_steps, lambda noisy, a: torch.full_like(noisy, 0.7))
    # With v_prediction the multistep solvers take 1/4,096 of the noise into the first prediction. DDIM rounds
    # its stride down: where 1,000 is no multiple of the number of steps, the last may end at timestep 0.
    tolerance = 0.07 if name == "ddim" else 1e-3
    torch.testing.assert_close(found, torch.full_like(found, 0.7), atol=tolerance, rtol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_multistep_solvers_need_fewer_steps(prediction):
    trained = make_noise_scheduler(prediction)
    errors = {
        name: float((solve(make_scheduler(name, trained), 12, gaussian(0.5)) - 0.5 * STARTS).abs().max())
        for name in SCHEDULERS
    }
    assert max(errors["dpmsolver++"], errors["unipc"]) < 0.9 * errors["ddim"], errors


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("num_steps", [10, 61])
def test_noise_levels_are_those_of_training(name, num_steps):
    for prediction, first in (("v_prediction", torch.inf), ("epsilon", 14.6146)):
        trained = make_noise_scheduler(prediction)
        scheduler = make_scheduler(name, trained)
        set_steps(scheduler, num_steps)
        kept = trained.alphas_cumprod[scheduler.timesteps]
        levels = noise_levels(scheduler)
        torch.testing.assert_close(levels, ((1 - kept) / kept).sqrt(), rtol=1e-4, atol=0)
        assert len(levels) == num_steps and levels[0] == pytest.approx(first, rel=1e-4)
        assert (levels.diff() < 0).all() and levels[-1] > 0


def test_ddim_is_the_trained_scheduler():
    trained = make_noise_scheduler()
    assert make_scheduler("ddim", trained).config == trained.config


def test_intervals_are_open_below_and_closed_above():
    assert in_interval(torch.tensor(torch.inf), None)
    assert not in_interval(torch.tensor(torch.inf), (0.3, 5.0))
    assert in_interval(torch.tensor(torch.inf), (0.3, torch.inf))
    assert [in_interval(level, (0.3, 5.0)) for level in (0.3, 0.31, 5.0, 5.1)] == [False, True, True, False]


def test_a_last_level_above_zero_is_kept():
    trained = make_noise_scheduler()
    trained = DDIMScheduler.from_config(trained.config, set_alpha_to_one=False)
    for name in ("dpmsolver++", "unipc"):
        scheduler = make_scheduler(name, trained)
        set_steps(scheduler, 4)
        last = (1 / trained.final_alpha_cumprod - 1).sqrt()
        torch.testing.assert_close(scheduler.sigmas[-1], last, rtol=1e-4, atol=0)
        found = solve(make_scheduler(name, trained), 4, lambda noisy, a: torch.full_like(noisy, 0.7))
        torch.testing.assert_close(found, torch.full_like(found, 0.7), atol=0.07, rtol=0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("euler", {}, "'euler': choose one of ddim, dpmsolver"),
        ("unipc", {"clip_sample": True}, "unipc: .*clip_sample.*take ddim"),
        *(
            (name, {"prediction_type": "epsilon"}, "epsilon and rescale_betas.*zero SNR")
            for name in SCHEDULERS
        ),
    ],
)
def test_what_a_solver_cannot_do_is_named(name, change, message):
    trained = DDIMScheduler.from_config(make_noise_scheduler().config, **change)
    with pytest.raises(ConfigError, match=message):
        make_scheduler(name, trained)
