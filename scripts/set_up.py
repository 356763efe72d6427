"""Print the Python interpreter to use, after making it ready: a virtual environment with the requirements.

Called by the command_* launchers with the requirement files as arguments, by whatever Python they found.
Standard library only. All messages go to stderr: stdout holds nothing but the interpreter's path.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WITHOUT_DEPENDENCIES = "-mediapipe.txt"  # how files end whose packages' own requirements are wrong: see there
STAMP_NAME = "champ_guidance_requirements.json"  # in the environment: {requirement file: hash when installed}


class SetUpError(Exception):
    """A problem the user can solve; the message says how."""


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def is_environment_active() -> bool:
    """Return whether this interpreter belongs to a virtual or to the active conda environment."""
    conda_prefix = os.environ.get("CONDA_PREFIX")
    in_conda = bool(conda_prefix) and Path(conda_prefix).resolve() == Path(sys.prefix).resolve()
    return in_conda or sys.prefix != sys.base_prefix


def environment_python(environment_dir: Path) -> Path:
    return environment_dir / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_environment(environment_dir: Path) -> None:
    """Make the virtual environment, or complete one whose making was interrupted."""
    say(f"Making the virtual environment {environment_dir}")
    command = [sys.executable, "-m", "venv", str(environment_dir)]
    if subprocess.run(command, stdout=sys.stderr).returncode != 0:
        raise SetUpError(
            f"{environment_dir} could not be made with {sys.executable}. On Debian and Ubuntu install the "
            "package python3-venv; if the folder was copied from elsewhere, delete it. Then run this again."
        )


def read_stamp(environment_dir: Path) -> dict[str, str]:
    try:
        return json.loads((environment_dir / STAMP_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # never installed here, or an interrupted write: install again
        return {}


def install_requirements(python: Path, environment_dir: Path, requirement_paths: list[Path]) -> None:
    """Install the files that changed since they were last installed in this environment."""
    stamp = read_stamp(environment_dir)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in requirement_paths}
    outdated = [path for path in requirement_paths if stamp.get(path.name) != hashes[path.name]]
    if not outdated:
        return
    names = " and ".join(path.name for path in outdated)
    say(f"Installing {names} into {environment_dir} (the first time: PyTorch, some minutes)")
    bare = [path for path in outdated if path.name.endswith(WITHOUT_DEPENDENCIES)]
    whole = [path for path in outdated if path not in bare]
    for paths, options in ((whole, []), (bare, ["--no-deps"])):
        if paths and not pip_install(python, paths, options):
            raise SetUpError(f"pip could not install {names}: its message is above. Run this again to retry.")
    (environment_dir / STAMP_NAME).write_text(json.dumps({**stamp, **hashes}, indent=1), encoding="utf-8")


def pip_install(python: Path, requirement_paths: list[Path], options: list[str]) -> bool:
    """Return whether pip installed all the files."""
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *options]
    for path in requirement_paths:
        command += ["-r", str(path)]
    return subprocess.run(command, stdout=sys.stderr).returncode == 0


def set_up(requirement_paths: list[Path]) -> Path:
    """Return the interpreter in which all the requirement files are installed."""
    if is_environment_active():
        environment_dir, python = Path(sys.prefix), Path(sys.executable)
    else:
        environment_dir = REPOSITORY / ".venv"
        python = environment_python(environment_dir)
        if not read_stamp(environment_dir):
            make_environment(environment_dir)
    install_requirements(python, environment_dir, requirement_paths)
    return python


def main(requirement_names: list[str]) -> int:
    try:
        python = set_up([REPOSITORY / name for name in requirement_names])
    except SetUpError as error:
        say(f"error: {error}")
        return 2
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
