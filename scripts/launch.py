"""Start training processes and end with the training's own exit code: 2 wrong settings, 143 SIGTERM, ...

torch's and accelerate's launchers end with 1 and a traceback of their own whatever happened. Arguments that
begin with --config_file are accelerate's, others those of torch.distributed.run.
"""

import os
import subprocess
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


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
    return 0


def start(argv: list[str]) -> None:
    if argv[:1] == ["--config_file"]:
        from accelerate.commands import launch

        if os.name != "nt":  # there a program cannot take another's place
            launch.simple_launcher = become
        launch.launch_command(launch.launch_command_parser().parse_args(argv))
    else:
        from torch.distributed.run import parse_args, run

        run(parse_args(argv))


def become(arguments) -> None:
    """Become the only process that an accelerate configuration wants.

    accelerate's own launcher hands no signal on: SIGTERM would end it, and leave the training running.
    """
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    command, environment = prepare_simple_launcher_cmd_env(arguments)
    os.execvpe(command[0], command, environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
