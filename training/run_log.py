"""The log of a run: console lines, progress bar, scalars, text and moving images in TensorBoard."""

import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from omegaconf import OmegaConf
from tqdm import tqdm

from .event_file import BoardWriter

# TensorBoard's page "Custom scalars": one chart per question, where "Time series" has one per number.
CHARTS = {
    "Does it learn?": {
        "loss": ["Multiline", ["train_loss", "val_loss$", "val_loss_training_clips", "val_loss_region/.*"]],
        "validation loss by timesteps": ["Multiline", ["val_loss/.*"]],
    },
    "Does it use its guidance?": {
        "loss rise with another clip's": ["Multiline", ["guidance_gap/.*"]],
        "the same, this type alone": ["Multiline", ["guidance_gap_alone/.*"]],
        "strength of the features": ["Multiline", ["guidance_norm/.*"]],
    },
    "Is it stable?": {
        "gradient norms": ["Multiline", ["grad_norm.*"]],
        "steps skipped": ["Multiline", ["steps_skipped"]],
    },
    "Is it fast?": {
        "samples per second": ["Multiline", ["samples_per_second"]],
        "seconds of a step that wait for data": ["Multiline", ["data_wait"]],
    },
}


class RunLog:
    """The main process's log; in the other processes every method does nothing."""

    def __init__(self, log_dir: Path, *, report_to: str, is_main: bool, start_step: int = 0):
        self.is_main = is_main
        self.writer = self.wandb = self.progress = None
        if is_main and report_to == "tensorboard":
            # A resumed run hides what an interrupted one logged beyond its last checkpoint.
            self.writer = BoardWriter(log_dir, self.say, purge_step=start_step + 1 if start_step else None)
            self.writer.add_custom_scalars(CHARTS)
        elif is_main:
            import wandb

            self.wandb = wandb
            log_dir.mkdir(parents=True, exist_ok=True)
            self.wandb.init(project="champ_guidance", name=log_dir.name, dir=str(log_dir))

    def say(self, message: str) -> None:
        """Print a line, above the progress bar."""
        if self.is_main:
            tqdm.write(message, file=sys.stderr)

    def scalars(self, values: dict[str, float], step: int) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(values, step=step)

    def text(self, name: str, text: str) -> None:
        if self.writer is not None:
            self.writer.add_text(name, "```\n" + text + "\n```", 0)
        if self.wandb is not None:
            self.wandb.config.update({name: text}, allow_val_change=True)

    def moving_image(self, name: str, gif: bytes, size: tuple[int, int], step: int) -> None:
        """Log a GIF of `size` (H, W): TensorBoard's page plays it, while `add_video` needs a lost moviepy."""
        if self.writer is not None:
            from tensorboard.compat.proto.summary_pb2 import Summary

            image = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=gif)
            summary = Summary(value=[Summary.Value(tag=name, image=image)])
            self.writer.file_writer.add_summary(summary, step)
        if self.wandb is not None:
            path = Path(self.wandb.run.dir) / f"{name.replace('/', '_')}-{step}.gif"
            path.write_bytes(gif)
            self.wandb.log({name: self.wandb.Video(str(path), format="gif")}, step=step)

    def start_progress(self, start_step: int, num_steps: int) -> None:
        if self.is_main:
            self.progress = tqdm(
                initial=start_step, total=num_steps, unit="step", dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 10.0,  # a log file wants fewer lines
            )  # fmt: skip

    def step(self, step: int, scalars: dict[str, float]) -> None:
        """Log a step's scalars and move the progress bar."""
        self.scalars(scalars, step)
        if self.progress is not None:
            shown = {
                "loss": f"{scalars['train_loss']:.4f}",
                "lr": f"{scalars['lr']:.2e}",
                "samples/s": f"{scalars['samples_per_second']:.2f}",
                "data_wait": f"{scalars['data_wait']:.2f}s",
                "memory": f"{scalars['peak_memory_gb']:.1f}GB",
            }
            self.progress.set_postfix(shown, refresh=False)
            self.progress.update()

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()
        if self.writer is not None:
            self.writer.close()
        if self.wandb is not None:
            self.wandb.finish()


class Stopwatch:
    """Splits a step's wall time into waiting for data and the rest."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        self.started = time.perf_counter()
        self.data_wait = 0.0

    def next_batch(self, batches):
        before = time.perf_counter()
        batch = next(batches)
        self.data_wait += time.perf_counter() - before
        return batch

    def seconds(self) -> float:
        return time.perf_counter() - self.started


def write_config(path: Path, settings: dict, sources: Sequence[str] = ()) -> str:
    """Write the resolved flags as YAML that --config reads; return it.

    Comments are versions, commit and `sources`, lines on where the values come from.
    """
    facts = "".join(f"# {line}\n" for line in (*versions(), *sources))
    text = facts + OmegaConf.to_yaml(OmegaConf.create(settings))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")  # as OmegaConf reads it, whatever the system's own encoding
    return text


def versions() -> list[str]:
    """Return lines: the git commit of this code, Python and the packages that decide the numbers."""
    return [
        f"git commit: {_git_commit()}",
        f"python {platform.python_version()} on {platform.platform()}",
        *(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers", "accelerate")),
    ]


def _git_commit() -> str:
    command, folder = ["git", "describe", "--always", "--dirty", "--abbrev=40"], Path(__file__).parent
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, check=True, encoding="utf-8")
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"


def peak_memory_gb(device) -> float:
    """Return the most memory used so far: of the GPU, or of this process where there is none."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**30
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**30 if sys.platform == "darwin" else 2**20)
