"""Where a training step's (or a sample's) time and memory go: seconds of its parts, and the peak of memory.

PyTorch only: it also runs in the original's interpreter.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch

PARTS = (
    "data", "vae", "image_encoder", "guidance_encoders", "reference", "denoiser", "backward", "optimizer",
)  # fmt: skip


class StepClock:
    """Times steps, whole and in their parts.

    On a GPU the parts need a wait at each border, which costs: there steps are timed first without looking
    inside, then one more with its parts.
    """

    def __init__(self, device: torch.device, parts: tuple[str, ...] = PARTS):
        self.device, self.parts = device, parts
        self.shows_parts = device.type == "cpu"
        self._steps: list[dict] = []  # {"step": (wall, cpu), "data": (wall, cpu), ...}, one dict per step
        self._inside: list[dict] = []  # the same of the steps whose parts were timed
        self._step: dict | None = None
        self._begun: dict[str, tuple[float, float]] = {}

    @contextmanager
    def step(self):
        """Time what is in the block as one step; on a GPU it is waited for at both ends."""
        self._step = {}
        self._begin("step", wait=True)
        yield
        self._end("step", wait=True)
        if self.shows_parts:
            self._inside.append(self._step)
        if not self.shows_parts or self.device.type == "cpu":
            self._steps.append(self._step)
        self._step = None

    @contextmanager
    def part(self, name: str):
        """Add the block to a part of the step. Reading data is told from the rest in every step."""
        self.begin(name)
        yield
        self.end(name)

    def begin(self, name: str) -> None:
        if self._step is not None and (self.shows_parts or name == "data"):
            self._begin(name, wait=self.shows_parts)

    def end(self, name: str) -> None:
        if name in self._begun:
            self._end(name, wait=self.shows_parts)

    def watch(self, module: torch.nn.Module, name: str) -> None:
        """Make every call of `module` a part of its step."""
        module.register_forward_pre_hook(lambda *_: self.begin(name))
        module.register_forward_hook(lambda *_: self.end(name))

    def watched(self, function, name: str):
        """Return `function`, every call of it a part of its step."""

        def call(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def forget(self) -> None:
        """Drop what was timed so far: the warm-up."""
        self._steps.clear()
        self._inside.clear()

    def summary(self, batch_size: int) -> dict:
        """Return medians over the steps; samples per second leave the reading of data out, see `data`."""
        wall, cpu = (
            statistics.median(step["step"][kind] - step.get("data", (0, 0))[kind] for step in self._steps)
            for kind in (0, 1)
        )
        with_data = statistics.median(step["step"][0] for step in self._steps)
        return {
            "samples_per_second": batch_size / wall,
            "samples_per_cpu_second": batch_size / cpu,
            "samples_per_second_with_data": batch_size / with_data,
            "step_seconds": wall,
            "step_cpu_seconds": cpu,
            "seconds": self._part_medians(0),
            "cpu_seconds": self._part_medians(1),
        }

    def _part_medians(self, kind: int) -> dict[str, float]:
        medians = {
            name: statistics.median(step.get(name, (0, 0))[kind] for step in self._inside)
            for name in self.parts
        }
        whole = statistics.median(step["step"][kind] for step in self._inside)
        return {**medians, "other": whole - sum(medians.values())}

    def _begin(self, name: str, *, wait: bool) -> None:
        if wait:
            self._wait()
        self._begun[name] = (time.perf_counter(), time.process_time())

    def _end(self, name: str, *, wait: bool) -> None:
        if wait:
            self._wait()
        wall, cpu = self._begun.pop(name)
        before = self._step.get(name, (0.0, 0.0))
        spent = (time.perf_counter() - wall, time.process_time() - cpu)
        self._step[name] = (before[0] + spent[0], before[1] + spent[1])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class MemoryPeak:
    """Peak memory of the steps: of a GPU what PyTorch has allocated, of a CPU what the process holds.

    A process also holds Python and its packages; `packages_gb` is what it held before any network was made.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.packages_gb = _resident_gb("VmRSS")

    def restart(self) -> None:
        """Forget the peak so far: that of building the networks is not the steps'."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif _STATUS.exists():
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")

    def summary(self) -> dict:
        if self.device.type == "cuda":
            return {"peak_memory_gb": torch.cuda.max_memory_allocated(self.device) / 2**30}
        return {"peak_memory_gb": _resident_gb("VmHWM"), "packages_gb": self.packages_gb}


_STATUS = Path("/proc/self/status")


def _resident_gb(name: str) -> float | None:
    """Return the memory of this process in GiB: VmRSS now, VmHWM at its peak; None but on Linux."""
    if not _STATUS.exists():
        return None
    line = next(line for line in _STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**20


def measure_steps(step: Callable[[], float], clock: StepClock, memory: MemoryPeak, spec: dict) -> dict:
    """Return a row of the results: time and memory of `step`, which trains one step and returns its loss.

    First come warm-up steps, which also make the optimizer's state and compile what is to be compiled, then
    those that count.
    """
    losses = []

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            with clock.step():
                losses.append(step())

    start = time.perf_counter()
    run(spec["warmup_steps"])
    warmup_seconds = time.perf_counter() - start
    clock.forget()
    memory.restart()
    run(spec["steps"])
    peak = memory.summary()
    is_gpu = clock.device.type == "cuda"
    if is_gpu:
        clock.shows_parts = True
        run(1)
    return {
        **clock.summary(spec["batch_size"]), **peak, "warmup_seconds": warmup_seconds, "losses": losses,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(clock.device) if is_gpu else "cpu", "torch": torch.__version__,
    }  # fmt: skip


def matrix_rate(device: torch.device, side: int = 8192, repeats: int = 30) -> float:
    """Return the TFLOP per second of bf16 matrix products of `side` x `side`, the card's practical best."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        left @ right
    torch.cuda.synchronize(device)
    return 2 * side**3 * repeats / (time.perf_counter() - start) / 1e12
