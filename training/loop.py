"""The loop: steps, log, validation, checkpoints and the final model, of whatever a task trains."""

import contextlib
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from caching.batch_encoding import move_batch
from system.errors import SaveError
from system.patience import MOST_SECONDS, NOTE_SECONDS, Patience, bounded
from system.stop_request import GRACE_SECONDS, Stopped, StopRequest

from .checkpoints.best import BestCheckpoint
from .checkpoints.folders import checkpoint_folders, written_aside
from .checkpoints.saving import TrainerState, save_checkpoint, save_or_say, saved_on_failure
from .execution.sharding import whole_weights
from .faults import NonFiniteGuard, describe_fault, is_scale_search
from .objective import seed_step
from .optimization import LearningRateSchedule, averaged_weights, trained_parameters
from .publishing.card import ModelDescription, write_card
from .publishing.hub import push
from .run_log import RunLog, Stopwatch, peak_memory_gb
from .settings.fields import RunSettings
from .step import MicroBatch, StepFacts, Update, agree_on_step, run_micro_batch

HOW_TO_GO_ON = "stopped; the same command with --resume_from_checkpoint latest goes on"
NO_END = f"stopped: {MOST_SECONDS / 60:.0f} minutes after a request what was begun has no end"
HANGING_FIX = "one of them hangs: see its last line, then start all with --resume_from_checkpoint latest"
FIRST_STEP_SECONDS = 60.0  # about, where none was timed


class Task(ABC):
    """What a trainer brings to `fit`: a model, the loss of a batch, validation, the final model.

    `model` is the bare one. A batch is a dict with "sample_id" and "position" [B], the samples' places in the
    stream of all: what is random in a loss is drawn from (seed, position), so that a resumed run repeats it.
    """

    model: nn.Module
    frozen_digests: Mapping[str, str] = MappingProxyType({})  # {part that never trains: its weights' digest}

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict) -> MicroBatch:
        """Return a batch's loss by `model`, which is the task's own, perhaps inside DDP."""

    @abstractmethod
    def write_final(self, folder: Path) -> None:
        """Write the final model into an empty folder. Raises OSError when it cannot."""

    def describe(self) -> ModelDescription | None:
        """Return what the final model's card says of it; None: it has no card."""
        return None

    def validate(self, log: RunLog, step: int) -> dict[str, float]:
        """Measure, log and return the scalars; only the main process is called, with the averaged weights."""
        return {}

    def start_afresh(self) -> None:  # noqa: B027 (a task need not)
        """Set what a checkpoint would bring, beside the weights, when there is none."""

    def trained_parts(self) -> dict[str, list[nn.Parameter]]:
        """Return {part: its trained parameters}, for the gradient norms."""
        return {"model": trained_parameters(self.model)}

    def optimizer_groups(self, learning_rate: float, pretrained_lr_scale: float) -> list[dict]:
        """Return the parameter groups of the optimizer, each with its peak learning rate."""
        return [{"params": trained_parameters(self.model), "lr": learning_rate}]


@dataclass
class Run:
    """A task with all that trains it, from `state` on. `setup.start_run` makes it."""

    settings: RunSettings
    accelerator: Accelerator
    task: Task
    model: nn.Module  # the task's, as accelerate prepared it
    update: Update
    schedule: LearningRateSchedule
    state: TrainerState
    log: RunLog
    num_steps: int
    num_samples: int  # in an epoch
    batches: Iterator[dict] | None = None  # set before `fit`
    exact_weights: Callable[[], AbstractContextManager] = contextlib.nullcontext  # around whatever saves
    all_on_device: AbstractContextManager = contextlib.nullcontext()  # around validation
    best: BestCheckpoint | None = None  # with --keep_best
    repository: str | None = None  # of the hub, with --push_to_hub

    @property
    def output_dir(self) -> Path:
        return Path(self.settings.output_dir)

    def release(self) -> None:
        """Let DDP go, before the process group does."""
        self.model = None

    def save(self) -> Path:
        """Write a checkpoint of the present step; every process calls it. Raises SaveError."""
        limit = self.settings.checkpoints_total_limit
        with self.exact_weights():
            return save_checkpoint(
                self.accelerator, self.output_dir, self.state, self.update.ema, limit=limit
            )

    def keep_best(self, scalars: dict[str, float]) -> None:
        """Write checkpoint-best when a validation's scalars, which the main process has, are the best so far.

        Every process calls it. A full disk ends no run: the best before stays, and counts as the best.
        """
        if self.best is None:
            return
        metric = self.best.metric
        found = scalars.get(metric, math.nan)
        if not math.isfinite(found):
            self.log.say(f"warning: this validation has no finite {metric}: it is not taken for the best")
        value = broadcast_object_list([found if self.best.is_better(found) else None])[0]
        if value is None:
            return
        state = dataclasses.replace(self.state, best={metric: value})
        try:
            with self.exact_weights():
                path = save_checkpoint(self.accelerator, self.output_dir, state, self.update.ema)
        except SaveError as error:
            self.log.say(f"warning: {error}; make room: the best so far stays, the next better one is tried")
            return
        self.best.value = value
        self.log.say(f"saved {path}, the best so far: {metric} {value:.6g}")

    def save_final(self) -> None:
        """Write output_dir/final; every process calls it. Raises SaveError; an earlier final/ then stays."""
        bare_model = self.task.model
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in bare_model.state_dict().values())
        with averaged_weights(bare_model, self.update.ema), self.exact_weights(), whole_weights(bare_model):
            with written_aside(self.accelerator, self.output_dir / "final", num_bytes) as save:
                save(self.task.write_final, main_only=True)
                save(self.write_card, main_only=True)

    def write_card(self, folder: Path) -> None:
        """Write the card of the final model, if its task describes it. Raises OSError."""
        description = self.task.describe()
        if description is not None:
            line = write_card(folder, description, self.state, self.output_dir / "final")
            if line is not None:
                self.log.say(line)

    def scalars(self, facts: StepFacts, lr: float, watch: Stopwatch) -> dict[str, float]:
        """Return what is logged of a step."""
        scaler = self.accelerator.scaler
        return {
            "train_loss": facts.loss,
            "lr": lr,
            "epoch": self.state.samples_seen / self.num_samples,
            "step": self.state.step,
            "samples_per_second": self.state.clips_per_step / watch.seconds(),
            "data_wait": watch.data_wait,
            "peak_memory_gb": peak_memory_gb(self.accelerator.device),
            "steps_skipped": self.state.steps_skipped,
            "grad_norm": facts.grad_norm,
            **{f"grad_norm/{part}": norm for part, norm in facts.grad_norms.items()},
            **({"loss_scale": scaler.get_scale()} if scaler else {}),
        }


@contextlib.contextmanager
def others_awaited(accelerator: Accelerator, stop: StopRequest, step_seconds: float) -> Iterator[None]:
    """Bound a step, in which the other processes may never come, one of them hanging.

    After a request to stop there is time for two more of such steps, then the process leaves; without one
    for ten, and twice as long as another may wait for its data. The process group's own end is far off: it
    is of validations and caches, too, for which the others wait between steps.
    """
    if accelerator.num_processes == 1:
        yield
        return
    words = "stopped while it waited for the other processes; its last checkpoint is kept"
    spare = 10 * step_seconds
    patience = Patience(NOTE_SECONDS + spare, 2 * MOST_SECONDS + spare, fix=HANGING_FIX)
    with stop.waiting(lambda: words, GRACE_SECONDS + 2 * step_seconds):
        with bounded(lambda: "a step that all processes take together", patience):
            yield


def stop_before_step(run: Run, stopped: Stopped) -> int:
    """Take the step back that was begun, save, and return the exit code. Other processes may be in that step.

    Raises Stopped where there are others, and before the first step, of which nothing can be saved.
    """
    state = run.state
    state.step -= 1
    state.samples_seen -= state.clips_per_step
    if run.accelerator.num_processes > 1 or state.step == 0:
        raise stopped
    run.log.say(stopped.message)
    if all(step != state.step for step, _ in checkpoint_folders(run.output_dir)):
        run.log.say(save_or_say(run.save, may_go_on=False))
    run.log.say(HOW_TO_GO_ON)
    return 128 + stopped.signal_number


def fit(run: Run) -> int:
    """Train to the last step and write the final model; every process calls it.

    Return the exit code: 0, or 128 + the signal that asked to stop, with a checkpoint saved.
    """
    accelerator, settings, task = run.accelerator, run.settings, run.task
    state, log, update = run.state, run.log, run.update
    guard, watch, step_seconds = NonFiniteGuard(state.steps_skipped), Stopwatch(), FIRST_STEP_SECONDS
    if state.step >= run.num_steps:
        log.say(f"trained to step {state.step} of {run.num_steps} already; more --max_train_steps go on")
    log.start_progress(state.step, run.num_steps)
    with StopRequest() as stop, stop.waiting(lambda: NO_END, MOST_SECONDS):
        while state.step < run.num_steps:
            # The micro-batches of one update. Each step has its own seed: a resumed run repeats it.
            state.step += 1
            state.samples_seen += state.clips_per_step
            seed_step(settings.seed, accelerator.process_index, state.step)
            watch.restart()
            micro_batches = []
            with others_awaited(accelerator, stop, step_seconds):
                try:
                    for _ in range(settings.gradient_accumulation_steps):
                        batch = move_batch(watch.next_batch(run.batches), accelerator.device)
                        micro_batches.append(run_micro_batch(accelerator, task, run.model, batch))
                except Stopped as stopped:  # the data did not come
                    return stop_before_step(run, stopped)

                # The processes agree on what is finite, and on a request to stop.
                facts = agree_on_step(accelerator, micro_batches, update.parts, stop.signal_number)
            step_seconds = watch.seconds()

            # Update, unless a number is not finite.
            if facts.is_finite:
                guard.step_was_good()
            elif not is_scale_search(accelerator, facts):
                log.say(guard.skip(state.step, describe_fault(facts, micro_batches, task.model)))
            lr = run.schedule.set(update.optimizer, state.step)
            update(facts, settings, has_scaler=accelerator.scaler is not None)
            state.steps_skipped = guard.steps_skipped

            # Log.
            log.step(state.step, run.scalars(facts, lr, watch))

            # Validate, at the end too.
            is_last = state.step == run.num_steps
            if state.step % settings.validation_steps == 0 or is_last:
                scalars = {}
                with averaged_weights(task.model, update.ema), whole_weights(task.model):
                    if accelerator.is_main_process:
                        with accelerator.autocast(), run.all_on_device:
                            scalars = task.validate(log, state.step)
                    accelerator.wait_for_everyone()
                values = {"train_loss": facts.loss, **scalars}  # the main process has them all
                state.last_values = {name: float(value) for name, value in values.items()}
                run.keep_best(scalars)  # before the checkpoint, from which no run validates this step again

            # Save. A full disk ends no run, but one that is asked to stop cannot wait for room.
            if state.step % settings.checkpointing_steps == 0 or facts.signal_number:
                log.say(save_or_say(run.save, may_go_on=is_last or not facts.signal_number))
            if facts.signal_number and not is_last:
                log.say(HOW_TO_GO_ON)
                return 128 + facts.signal_number

    # Final model, with the averaged weights where they are kept.
    with saved_on_failure(run.save, run.output_dir, state.step, log.say):
        run.save_final()
    log.say(f"final model: {run.output_dir / 'final'}")
    if run.repository is not None and accelerator.is_main_process:
        log.say(push(run.output_dir / "final", run.repository, state.step))
    return 0
