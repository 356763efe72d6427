"""How many steps do the solvers of sampling need? On data whose best prediction is known in closed form.

    python benchmarks/sample/solvers.py

Data: a mixture of three normal distributions in one dimension, of which the best prediction of a network is
known. 512 samples, v-prediction on the training's schedule with zero terminal SNR, from the same noise; mean
distance from where 1,000 steps of DDIM end.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import system.waiting  # noqa: E402, F401  (before torch is loaded)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from pipelines.schedulers import SCHEDULERS, make_scheduler, set_steps  # noqa: E402
from training.objective import make_noise_scheduler  # noqa: E402

MEANS, WIDTH = (-1.2, 0.3, 1.5), 0.25  # of equal weight
NUM_STEPS = (8, 10, 15, 25)


def best_prediction(noisy: Tensor, kept: Tensor) -> Tensor:
    """Return v of samples [n] at a noise level. kept: cumulative product of 1 - beta there."""
    noisy, means, signal = noisy.double(), torch.tensor(MEANS).double(), kept.sqrt()
    variance = kept * WIDTH**2 + 1 - kept
    away = noisy[..., None] - signal * means  # [n, 3]
    shares = (-(away**2) / 2 / variance).softmax(dim=-1)
    clean = (shares * (means + signal * WIDTH**2 / variance * away)).sum(dim=-1)
    noise = (noisy - signal * clean) / (1 - kept).sqrt()
    return (signal * noise - (1 - kept).sqrt() * clean).float()


def sample(name: str, num_steps: int, noise: Tensor) -> Tensor:
    trained = make_noise_scheduler("v_prediction")
    all_kept = torch.cumprod(1 - trained.betas.double(), dim=0)
    scheduler, samples = make_scheduler(name, trained), noise
    set_steps(scheduler, num_steps)
    for timestep in scheduler.timesteps:
        prediction = best_prediction(samples, all_kept[timestep])
        samples = scheduler.step(prediction, timestep, samples).prev_sample
    return samples


def main() -> None:
    noise = torch.randn(1, 512, generator=torch.Generator().manual_seed(0))
    end = sample("ddim", 1000, noise)
    print("| solver | " + " | ".join(f"{count} steps" for count in NUM_STEPS) + " |")
    print("|---|" + "---|" * len(NUM_STEPS))
    for name in SCHEDULERS:
        errors = [float((sample(name, count, noise) - end).abs().mean()) for count in NUM_STEPS]
        print(f"| `{name}` | " + " | ".join(f"{error:.3f}" for error in errors) + " |")


if __name__ == "__main__":
    main()
