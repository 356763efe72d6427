"""Start training processes and end with the training's own exit code: 2 wrong settings, 143 SIGTERM, ...

torch's and accelerate's launchers end with 1 and a traceback of their own whatever happened. Arguments that
begin with --config_file are accelerate's, others those of torch.distributed.run.
"""

import os
import subprocess
import sys

import yaml
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

# What accelerate raises where it cannot read a configuration, or cannot do what it says.
FAULTS = (
    ValueError, TypeError, AttributeError, AssertionError, ImportError, OSError, RuntimeError, yaml.YAMLError
)  # fmt: skip
FOREIGN = {
    "deepspeed_launcher": "DeepSpeed: use configs/accelerate/zero2.yaml or fsdp.yaml, which shard as it does",
    "tpu_launcher": "a TPU: use one of configs/accelerate/, on GPUs",
    "tpu_pod_launcher": "a TPU: use one of configs/accelerate/, on GPUs",
    "sagemaker_launcher": "SageMaker: run one of configs/accelerate/ on the machine itself",
}


def main(argv: list[str]) -> int:
    """Return the exit code of the first process that failed, or 0; 128 + signal where one stopped the run."""
    try:
        start(argv)
    except SignalException as stop:
        return 128 + stop.sigval
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except subprocess.CalledProcessError as error:  # accelerate on Windows, where one process is wanted
        return error.returncode if error.returncode >= 0 else 128 - error.returncode
    except FAULTS as fault:
        if argv[:1] != ["--config_file"]:
            raise
        reason = " ".join(str(fault).split())
        if "'bool' object" in reason:
            reason = "no and yes need quotes, or YAML reads false and true: write mixed_precision: 'no'"
        print(f"error: ACCELERATE_CONFIG {argv[1]}: {reason}", file=sys.stderr)
        return 2
    return 0


def start(argv: list[str]) -> None:
    if argv[:1] == ["--config_file"]:
        from accelerate.commands import launch

        if not os.path.isfile(argv[1]):
            raise ValueError("no such file")
        for name, what in FOREIGN.items():
            setattr(launch, name, refuse(what))
        launch.simple_launcher = start_one(launch.simple_launcher)
        launch.launch_command(launch.launch_command_parser().parse_args(argv))
    else:
        from torch.distributed.run import parse_args, run

        run(parse_args(argv))


def refuse(what: str):
    """Return a launcher that raises ValueError, as the training cannot be started so."""

    def launcher(*_):
        raise ValueError(f"it asks for {what}")

    return launcher


def start_one(launcher):
    """Return accelerate's launcher of one process, which no longer drops the others without a word."""

    def launch_one(arguments) -> None:
        for name in ("num_processes", "num_machines"):
            number = getattr(arguments, name) or 1
            if number > 1 and arguments.mpirun_hostfile is None:
                raise ValueError(
                    f"{name} is {number}, but its distributed_type starts one process: set distributed_type: "
                    "MULTI_GPU (on a CPU too)"
                )
        if os.name == "nt":  # there a program cannot take another's place
            launcher(arguments)
        else:
            become(arguments)

    return launch_one


def become(arguments) -> None:
    """Become the only process that an accelerate configuration wants.

    accelerate's own launcher hands no signal on: SIGTERM would end it, and leave the training running.
    """
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(arguments)
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
