"""Train a generator of pose tracks from poses and music: parse, set up, fit.

`python train_music_to_pose.py --help` lists all flags. The run is as one of train_guidance.py, whose `final/`
it feeds: a song and an image become a dance, the dance a video.
"""

import system.waiting  # before torch is loaded

import functools
import sys

from accelerate import Accelerator

from system.command_line import run_main
from training.execution.launch import Session, open_session
from training.faults import out_of_memory_explained
from training.loop import Run, fit
from training.music_to_pose.data import DanceFolders, open_data
from training.music_to_pose.settings import (
    MusicToPoseArguments,
    check_arguments,
    memory_advice,
    settings_without_effect,
)
from training.music_to_pose.task import MusicToPoseTask, make_task
from training.music_to_pose.validator import DanceValidator
from training.planning.dry_run import disk_line, print_outline, state_line
from training.settings.parsing import parse_arguments
from training.setup import open_batches, start_run, where_to_look

__all__ = ["main", "train"]


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong settings or data, 1 a fault of the run, 130 or 143 stopped."""
    kind = MusicToPoseArguments
    return run_main(kind.program, lambda: train(parse_arguments(argv, kind=kind, check=check_arguments)))


def train(arguments: MusicToPoseArguments) -> int:
    """Check the data, then train to `output_dir/final`; return the exit code. Every process runs this."""
    folders = DanceFolders(arguments, arguments.output_dir, {})
    with open_session(arguments) as session:
        if not folders.report(session.accelerator):
            return 2
        if arguments.check_data:
            return 0
        session.resources.enter_context(out_of_memory_explained(functools.partial(memory_advice, arguments)))
        task = make_task(arguments, open_data(folders, session.accelerator))
        if arguments.dry_run:
            print_plan(arguments, task, session.accelerator)
            return 0
        run = set_up(arguments, session, task)
        code = fit(run)
        if code == 0:
            run.log.say(where_to_look(arguments))
        return code


def print_plan(arguments: MusicToPoseArguments, task: MusicToPoseTask, accelerator: Accelerator) -> None:
    """Print the plan of a run to standard output; only the main process prints."""
    if accelerator.is_main_process:
        print_outline(arguments, accelerator, task.data, {"model": list(task.model.parameters())})
        print(state_line(arguments, task.model), disk_line(arguments, task.model), sep="\n")


def set_up(arguments: MusicToPoseArguments, session: Session, task: MusicToPoseTask) -> Run:
    """Return the run, ready for `fit`: optimizer and checkpoint, validation, batches."""
    notes = (*settings_without_effect(arguments), *task.data.notes())
    run = start_run(arguments, session, task, len(task.data.train_indices), notes)
    if session.accelerator.is_main_process:
        task.validator = DanceValidator(task.data, task.objective, arguments, session.accelerator.device)
    open_batches(run, arguments.num_workers)
    session.resources.callback(run.batches.close)
    task.model.train()
    return run


if __name__ == "__main__":
    sys.exit(main())
