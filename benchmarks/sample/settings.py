"""How a benchmark samples, in one word: `ddim:25`, or `dpmsolver++:10:scale=2:interval=0.3,5`."""

import argparse
import dataclasses
from dataclasses import dataclass

from pipelines.schedulers import SCHEDULERS

FORM = "SCHEDULER:STEPS[:scale=S][:interval=LOW,HIGH][:grids=1|2][:noise=own|shared]"
GUIDANCE_SCALE = 3.5  # the original's


@dataclass(frozen=True)
class Setting:
    """Solver, steps, guidance and windows of a sample. name: the word that it was given as."""

    name: str
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    guidance_interval: tuple[float, float] | None = None  # of noise levels (sigma)
    window_grids: int = 1
    shared_noise: bool = False

    @property
    def keywords(self) -> dict:
        """Return the arguments of ChampPipeline.__call__, but for those that have their defaults."""
        values = dataclasses.asdict(self)
        del values["name"], values["scheduler"]
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value != defaults[name]}


def setting(word: str) -> Setting:
    """Return the setting of a word of FORM; for argparse."""
    try:
        scheduler, steps, *others = word.split(":")
        given = dict(other.split("=") for other in others)
        interval = given.pop("interval", None)
        found = Setting(
            word, scheduler, int(steps), float(given.pop("scale", GUIDANCE_SCALE)),
            None if interval is None else _two_numbers(interval),
            int(given.pop("grids", 1)), {"own": False, "shared": True}[given.pop("noise", "own")],
        )  # fmt: skip
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{word}: expected {FORM}") from None
    if scheduler not in SCHEDULERS:
        raise argparse.ArgumentTypeError(f"{word}: SCHEDULER is one of {', '.join(SCHEDULERS)} ({FORM})")
    if given:
        raise argparse.ArgumentTypeError(f"{word}: {', '.join(given)} is none of {FORM}")
    return found


def _two_numbers(text: str) -> tuple[float, float]:
    low, high = map(float, text.split(","))
    return low, high
