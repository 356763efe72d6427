"""The launchers do the documented steps, in order, and hand flags and exit codes on.

The shell launcher runs here for real in a copy of the repository whose Python is a recorder: nothing is
installed or trained. The Windows launcher is compared with it line by line (there is no cmd.exe to run it).
"""

import os
import re
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sample_guidance import build_parser

REPOSITORY = Path(__file__).resolve().parents[1]
SHELL_LAUNCHER = REPOSITORY / "command_train_guidance.sh"
BATCH_LAUNCHER = REPOSITORY / "command_train_guidance.bat"

# Stands for Python: notes its arguments, passes as Python 3.11, answers for scripts/set_up.py with itself,
# and fails where the test says so.
RECORDER = """#!/usr/bin/env bash
if [ "$1" = "-c" ]; then exit "${TOO_OLD:-0}"; fi
printf '%s\\n' "$(printf '[%s]' "$@")" >> "$RECORD_PATH"
case "$*" in
    *set_up.py*) if [ -n "${SET_UP_FAILS:-}" ]; then exit 2; fi; echo "$RECORDER" ;;
    *datasets.demo_data*) exit "${DEMO_DATA_EXIT:-0}" ;;
    *train_guidance.py*) if [ -n "${TRAIN_SLEEPS:-}" ]; then exec sleep 60; fi; exit "${TRAIN_EXIT:-0}" ;;
    *ruff*) exit "${RUFF_EXIT:-0}" ;;
esac
"""


@pytest.fixture
def copied_repository(tmp_path):
    """A folder with a space in its name that holds the launchers and what they read."""
    copy_dir = tmp_path / "my dance"
    shutil.copytree(
        REPOSITORY / "scripts", copy_dir / "scripts", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copytree(REPOSITORY / "configs", copy_dir / "configs")
    for path in REPOSITORY.glob("command_*.sh"):
        shutil.copy(path, copy_dir)
    shutil.copytree(REPOSITORY / ".ci", copy_dir / ".ci")
    return copy_dir


def run_launcher(
    repository, tmp_path, *arguments, script="command_train_guidance.sh", while_it_runs=None, **environment
):
    """Runs the launcher from another folder; returns (result, the recorded Python commands)."""
    recorder_dir = tmp_path / "recorder bin"
    recorder_dir.mkdir(exist_ok=True)
    for name in ("python", "python3"):
        recorder = recorder_dir / name
        recorder.write_text(RECORDER, encoding="utf-8")
        recorder.chmod(recorder.stat().st_mode | stat.S_IXUSR)
    record_path = tmp_path / "record.txt"
    record_path.unlink(missing_ok=True)
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    process = subprocess.Popen(
        ["bash", str(repository / script), *arguments],
        cwd=tmp_path,
        env={
            **kept,
            "PATH": f"{recorder_dir}{os.pathsep}/usr/bin{os.pathsep}/bin",
            "RECORD_PATH": str(record_path),
            "RECORDER": str(recorder_dir / "python"),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    if while_it_runs is not None:
        while_it_runs(process)
    output = process.communicate(timeout=600)
    result = subprocess.CompletedProcess(process.args, process.returncode, *output)
    commands = record_path.read_text(encoding="utf-8").splitlines() if record_path.exists() else []
    return result, commands


SET_UP = "[scripts/set_up.py][requirements.txt]"
DEMO_DATA = "[-m][datasets.demo_data][--output_dir][demo_data]"


@pytest.mark.parametrize(
    "path", sorted([*REPOSITORY.glob("*.sh"), *REPOSITORY.glob("scripts/*.sh")]), ids=str
)
def test_shell_script_parses(path):
    assert subprocess.run(["bash", "-n", str(path)]).returncode == 0


def test_demo_sets_up_makes_data_and_trains(copied_repository, tmp_path):
    result, commands = run_launcher(copied_repository, tmp_path, "demo", "--max_train_steps", "3")
    assert result.returncode == 0, result.stderr
    train = "[train_guidance.py][--config][configs/demo.yaml][--max_train_steps][3]"
    assert commands == [SET_UP, DEMO_DATA, train]


def test_demo_trains_dances_too_and_makes_a_video_of_an_image_and_a_song(copied_repository, tmp_path):
    result, commands = run_launcher(copied_repository, tmp_path, "demo", NUM_PROCESSES="2")
    assert result.returncode == 0, result.stderr
    launch = "[scripts/launch.py][--standalone][--nproc_per_node][2]"
    assert commands[:4] == [
        SET_UP,
        DEMO_DATA,
        f"{launch}[train_guidance.py][--config][configs/demo.yaml]",
        f"{launch}[train_music_to_pose.py][--config][configs/demo_music_to_pose.yaml]",
    ]
    pose, sample = commands[4:]
    assert pose.startswith("[-m][demo.standing_pose][--sample][validation_00000]")
    assert sample.startswith("[sample_guidance.py][--model_path][demo_output/final][--music_to_pose_path]")
    words = sample.strip("[]").split("][")
    build_parser().parse_args(words[1:])  # each flag is one of the script's
    demo = OmegaConf.load(REPOSITORY / "configs/demo_music_to_pose.yaml")
    assert f"[--music_to_pose_path][{demo.output_dir}/final]" in sample
    path = pose.strip("[]").split("][")[-1]
    assert f"[--reference_pose][{path}]" in sample


def test_a_request_to_stop_reaches_each_part_of_the_demo(copied_repository, tmp_path):
    def stop(launcher):
        while "[train_guidance.py]" not in (record.read_text() if record.exists() else ""):
            time.sleep(0.02)
        launcher.terminate()

    record = tmp_path / "record.txt"
    result, commands = run_launcher(copied_repository, tmp_path, "demo", TRAIN_SLEEPS="1", while_it_runs=stop)
    assert (result.returncode, len(commands)) == (143, 3)


def test_training_passes_flags_on_as_they_are(copied_repository, tmp_path):
    flags = [
        "--train_data_dir",
        "my videos/data",
        "--guidance_types",
        "music",
        "pose",
        "--output_dir",
        "$out *",
    ]
    result, commands = run_launcher(copied_repository, tmp_path, *flags)
    assert result.returncode == 0, result.stderr
    quoted = "".join(f"[{flag}]" for flag in flags)
    assert commands == [SET_UP, f"[train_guidance.py][--config][configs/train_guidance.yaml]{quoted}"]


def test_demo_goes_on_from_its_checkpoint():
    demo = OmegaConf.load(REPOSITORY / "configs/demo.yaml")
    assert demo.resume_from_checkpoint == "latest"
    assert demo.checkpointing_steps <= demo.max_train_steps / 4


@pytest.mark.parametrize(
    "environment, expected_code, expected_commands",
    [
        ({"TRAIN_EXIT": "143"}, 143, 3),
        ({"DEMO_DATA_EXIT": "2"}, 2, 2),
        ({"SET_UP_FAILS": "1"}, 2, 1),
    ],
)
def test_failure_stops_with_its_exit_code(
    copied_repository, tmp_path, environment, expected_code, expected_commands
):
    result, commands = run_launcher(copied_repository, tmp_path, "demo", **environment)
    assert (result.returncode, len(commands)) == (expected_code, expected_commands)


def test_several_processes(copied_repository, tmp_path):
    _, commands = run_launcher(copied_repository, tmp_path, NUM_PROCESSES="2")
    launch = "[scripts/launch.py][--standalone][--nproc_per_node][2]"
    assert commands[-1] == f"{launch}[train_guidance.py][--config][configs/train_guidance.yaml]"
    _, commands = run_launcher(copied_repository, tmp_path, NUM_PROCESSES="1")
    assert commands[-1] == "[train_guidance.py][--config][configs/train_guidance.yaml]"


def test_accelerate_configuration(copied_repository, tmp_path):
    _, commands = run_launcher(
        copied_repository, tmp_path, ACCELERATE_CONFIG="my config.yaml", NUM_PROCESSES="8"
    )
    launch = "[scripts/launch.py][--config_file][my config.yaml][--num_processes][8]"
    assert commands[-1] == f"{launch}[train_guidance.py][--config][configs/train_guidance.yaml]"


@pytest.mark.parametrize("stopped_by, expected_code", [(None, 2), ("SIGTERM", 143)])
def test_several_processes_end_with_the_trainings_own_exit_code(tmp_path, stopped_by, expected_code):
    # torch's own launcher ends with 1 and a traceback for both.
    training = tmp_path / "training.py"
    training.write_text(
        "import os, signal, sys, time\n"
        f"if {stopped_by!r} is None: sys.exit(2)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "os.kill(os.getppid(), signal.SIGTERM) if os.environ['RANK'] == '0' else None\n"
        "time.sleep(60)\n"
    )
    launch = [sys.executable, "scripts/launch.py", "--standalone", "--nproc_per_node", "2", str(training)]
    result = subprocess.run(launch, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert result.returncode == expected_code, result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
def test_a_single_process_of_accelerate_gets_the_signal(tmp_path):
    # accelerate's own launcher would end, and leave the training running.
    (tmp_path / "one.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nnum_machines: 1\nnum_processes: 1\n"
        "use_cpu: true\nmixed_precision: 'no'\n"
    )
    training = tmp_path / "training.py"
    training.write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(143)))\n"
        "print('training', flush=True)\n"
        "time.sleep(60)\n"
    )
    launch = [sys.executable, "scripts/launch.py", "--config_file", str(tmp_path / "one.yaml"), str(training)]
    process = subprocess.Popen(launch, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "training\n"
    process.terminate()
    assert process.communicate(timeout=60) == ("saved\n", None) and process.returncode == 143


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            "num_processes: 4\n",
            "num_processes is 4, but its distributed_type starts one process: set ",
        ),
        ("num_machines: 2\n", "num_machines is 2, but its distributed_type starts one process"),
        ("distributed_type: DEEPSPEED\n", "asks for DeepSpeed: use configs/accelerate/zero2.yaml"),
        ("distributed_type: XLA\n", "asks for a TPU"),
        ("mixed_precision: half\n", "Unknown mixed_precision mode: half"),
        ("mixed_precision: no\n", "no and yes need quotes, or YAML reads false and true: write mixed"),
        ("precision: bf16\n", "unknown keys (['precision'])"),
        ("num_processes: [\n", "expected"),
        (None, "no such file"),
    ],
)
def test_an_accelerate_configuration_that_cannot_run_is_one_line(
    changes, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import launch
    from accelerate.commands import launch as accelerates

    for name in (*launch.FOREIGN, "simple_launcher"):  # put back at the end
        monkeypatch.setattr(accelerates, name, getattr(accelerates, name))
    monkeypatch.setattr(os, "execvpe", lambda *_: pytest.fail("it started the training"))
    config = tmp_path / "my.yaml"
    if changes is not None:
        keys = {"distributed_type": "'NO'", "num_machines": "1", "num_processes": "1"}
        keys["mixed_precision"] = "'no'"
        keys |= dict(line.split(": ") for line in changes.splitlines())
        config.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    assert launch.main(["--config_file", str(config), "train_guidance.py"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: ACCELERATE_CONFIG {config}: ") and message in error
    assert error.count("\n") == 1


def test_old_python_is_refused(copied_repository, tmp_path):
    result, commands = run_launcher(copied_repository, tmp_path, "demo", TOO_OLD="1", VIRTUAL_ENV="/envs/old")
    assert (result.returncode, commands) == (2, [])
    assert "Python 3.11" in result.stderr and "/envs/old" in result.stderr


def test_help_needs_no_python(copied_repository, tmp_path):
    result, commands = run_launcher(copied_repository, tmp_path, "--help")
    assert (result.returncode, commands) == (0, [])
    assert (
        "demo [flags]" in result.stdout and "NUM_PROCESSES" in result.stdout and "set -e" not in result.stdout
    )


@pytest.mark.parametrize("script", ["command_test.sh", ".ci/run"])
def test_test_launcher(copied_repository, tmp_path, script):
    result, commands = run_launcher(copied_repository, tmp_path, "-k", "a b", script=script)
    assert result.returncode == 0, result.stderr
    extras = "[requirements-dev.txt][requirements-prepare.txt][requirements-mediapipe.txt]"
    assert commands[:2] == [f"{SET_UP}{extras}", "[-m][ruff][check][.]"]
    assert commands[2].startswith("[-m][pytest]") and commands[2].endswith("[-k][a b]")
    result, commands = run_launcher(copied_repository, tmp_path, script=script, RUFF_EXIT="1")
    assert (result.returncode, len(commands)) == (1, 2)


# -- The Windows launcher agrees with the shell launcher.


def launcher_steps(path: Path) -> list[str]:
    """The Python commands of a launcher in their order, each as its module or script and its own flags."""
    steps = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith(("#", "rem ", "::", "echo")):
            continue
        words = re.findall(
            r"train_guidance\.py|train_music_to_pose\.py|sample_guidance\.py|demo\.standing_pose|"
            r"requirements\S*?\.txt|datasets\.demo_data|"
            r"accelerate\.commands\.launch|torch\.distributed\.run|--[a-z_]+",
            line,
        )
        if words and not line.lstrip().startswith(("if [", 'if "%~1"', 'for /f "tokens')):
            steps.append(" ".join(words))
    return steps


def launcher_words(path: Path, pattern: str) -> set[str]:
    return set(re.findall(pattern, path.read_text(encoding="utf-8")))


def test_batch_launcher_has_the_same_steps():
    steps = launcher_steps(SHELL_LAUNCHER)
    assert "datasets.demo_data --output_dir" in steps and len(steps) == 14
    assert launcher_steps(BATCH_LAUNCHER) == steps


@pytest.mark.parametrize(
    "pattern",
    [
        r"configs/\w+(?:\.yaml|/)",
        r"NUM_PROCESSES|ACCELERATE_CONFIG|CUDA_VISIBLE_DEVICES",
        r"demo_data\b",
    ],
)
def test_batch_launcher_reads_the_same_things(pattern):
    assert launcher_words(BATCH_LAUNCHER, pattern) == launcher_words(SHELL_LAUNCHER, pattern) != set()


def test_batch_launcher_jumps_only_to_its_labels():
    text = BATCH_LAUNCHER.read_text(encoding="utf-8")
    labels = set(re.findall(r"^:([a-z_]+)", text, re.M))
    assert set(re.findall(r"(?:goto|call) :?([a-z_]+)", text)) == labels
