"""The job scripts do what they say, with recorders in the place of Python and SLURM's own commands."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.run import parse_args

import prepare_guidance
from preparation.parts import Part

SCRIPTS = Path(__file__).resolve().parents[1] / "configs" / "slurm"
SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3", "SLURM_CPUS_PER_TASK": "8", "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_GPUS_ON_NODE": "4",
}  # fmt: skip
RECORDER = """#!/usr/bin/env bash
name=$(basename "$0")
printf '%s\\n' "$name" "$@" END >> "$RECORD"
case "$name $1" in
    "scontrol show") printf 'n1\\nn2\\n' ;;
    "srun "*) exit "${SRUN_EXIT:-0}" ;;
esac
"""
pytestmark = pytest.mark.skipif(shutil.which("bash") is None or sys.platform == "win32", reason="needs bash")


@pytest.fixture
def submit(tmp_path):
    """submit(script, *arguments, **environment): (exit code, commands that it ran)."""
    for name in ("python", "srun", "scontrol", "ray"):
        (tmp_path / name).write_text(RECORDER)
        (tmp_path / name).chmod(0o755)

    def run(script, *arguments, **environment):
        record = tmp_path / "record"
        record.write_text("")
        paths = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "RECORD": str(record)}
        values = {**os.environ, **SLURM, **paths, "SLURM_SUBMIT_DIR": str(tmp_path), **environment}
        code = subprocess.run(["bash", SCRIPTS / script, *arguments], env=values, timeout=60).returncode
        commands = record.read_text().removesuffix("END\n").split("\nEND\n")
        return code, [command.strip().split("\n") for command in commands]

    return run


def test_each_task_prepares_its_part(submit):
    code, (command,) = submit("prepare.sbatch", "raw videos", "data", "--pose_format", "npy")
    arguments = prepare_guidance.parse_arguments(command[2:])
    assert code == 0 and command[:2] == ["python", "prepare_guidance.py"]
    assert arguments.shard == Part(3, 16) and arguments.input_dir == "raw videos"
    assert arguments.num_workers == 8 and arguments.pose_format == "npy"
    assert "#SBATCH --array=1-16\n" in (SCRIPTS / "prepare.sbatch").read_text()
    _, (command,) = submit("prepare.sbatch", "raw", "data", PARTS="40")
    assert prepare_guidance.parse_arguments(command[2:]).shard == Part(3, 40)


def test_the_merge_takes_the_same_arguments(submit):
    code, (command,) = submit("prepare_merge.sbatch", "raw", "data", "--pose_format", "npy")
    assert code == 0 and prepare_guidance.parse_arguments(command[2:]).merge


def test_ray_is_started_on_all_machines_before_the_command(submit):
    code, commands = submit("prepare_ray.sbatch", "raw", "data")
    assert code == 0
    (command,) = [command for command in commands if command[0] == "python"]
    arguments = prepare_guidance.parse_arguments(command[2:])
    assert (arguments.executor, arguments.ray_address) == ("ray", "n1:24711")
    assert ["ray", "status", "--address=n1:24711"] in commands


@pytest.mark.parametrize("ended, is_requeued", [(0, False), (1, False), (2, False), (143, True)])
def test_training_is_requeued_where_its_time_was_up(submit, ended, is_requeued):
    code, commands = submit("train.sbatch", "--config", "a.yaml", SRUN_EXIT=str(ended))
    assert code == ended
    assert (["scontrol", "requeue", "4711"] in commands) == is_requeued
    srun = next(command for command in commands if command[0] == "srun")
    launcher = parse_args(srun[srun.index("scripts/launch.py") + 1 :])
    assert (launcher.nnodes, launcher.nproc_per_node) == ("2", "4")
    assert (launcher.rdzv_backend, launcher.rdzv_endpoint) == ("c10d", "n1:24711")
    assert launcher.training_script == "train_guidance.py"
    assert launcher.training_script_args == ["--config", "a.yaml", "--resume_from_checkpoint", "latest"]
