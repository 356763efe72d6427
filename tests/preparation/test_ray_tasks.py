"""The same files as one process makes, by two machines of which one is lost; what always fails is named.

The machines are processes of this one, each in a session of its own, and so is the run that uses them: what
hangs is ended with all that it started.
"""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import prepare_guidance
from preparation import ray_tasks
from preparation.ray_tasks import run_on_ray
from preparation.settings import Settings

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="pip install -r requirements-ray.txt")
REPOSITORY = Path(prepare_guidance.__file__).parent
NUM_VIDEOS = 5
MOST_SECONDS = 180  # for a machine to start, or a run to end, on a machine that has other work
START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
SIZES = ["--memory", str(8 << 30), "--object-store-memory", str(100 << 20)]

# On a machine of Ray's: leaves a note of the machine, and waits there until the other one is lost.
ESTIMATOR = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from marker_pose import find_markers, level

NOTES = Path({notes!r})

def find(frame):
    if frame[0, 0, 2] > 150:
        os._exit(3)
    if "MACHINE" in os.environ:
        (NOTES / os.environ["MACHINE"]).touch()
        end = time.monotonic() + {most_seconds}
        while not (NOTES / "lost").exists() and time.monotonic() < end:
            time.sleep(0.05)
    return find_markers(frame)
"""


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_the_flag_says_what_to_install(tmp_path, capsys):
    folders = ["--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "data")]
    assert prepare_guidance.main([*folders, "--executor", "ray"]) == 2
    assert "pip install -r requirements-ray.txt" in capsys.readouterr().err


@contextlib.contextmanager
def started(command: list[str], output_path: Path, **variables: str):
    """Run a command in a session of its own; yield its process, and end all that the session holds."""
    environment = os.environ | {"RAY_memory_monitor_refresh_ms": "0"} | variables
    with output_path.open("w") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        end_session(process)


def end_session(process: subprocess.Popen) -> None:
    """Kill all processes of a session at once, as a power cut does."""
    table = subprocess.run(["ps", "-e", "-o", "pid=,sid="], capture_output=True, text=True, check=True).stdout
    for pid, session in (map(int, line.split()) for line in table.splitlines()):
        if session == process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.wait(MOST_SECONDS)


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen, output_path: Path) -> None:
    end = time.monotonic() + MOST_SECONDS
    while not is_so():
        assert process.poll() is None and time.monotonic() < end, output_path.read_text()
        time.sleep(0.05)


@pytest.fixture
def two_machines(tmp_path):
    """Yield (address, the second machine's process)."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address, here = f"127.0.0.1:{port}", ["--node-ip-address", "127.0.0.1"]
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as short_dir, \
            contextlib.ExitStack() as machines:  # fmt: skip
        head = ["--head", "--port", str(port), "--include-dashboard", "false", "--temp-dir", short_dir]
        for name, flags, cores in (("first", head, 1), ("second", ["--address", address], 2)):
            command, output_path = [*START, *here, *SIZES, "--num-cpus", str(cores), *flags], tmp_path / name
            process = machines.enter_context(started(command, output_path, MACHINE=name))
            wait_until(lambda: "Ray runtime started" in output_path.read_text(), process, output_path)  # noqa: B023
        yield address, process


def files_below(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@needs_ray
@pytest.mark.skipif(os.name == "nt", reason="sessions are those of POSIX")
def test_a_machine_is_lost_and_the_folder_is_the_same(tmp_path, write_raw, draw, marker_module, two_machines):
    address, second = two_machines
    (tmp_path / "notes").mkdir()
    names = {"tests": str(marker_module.parent), "notes": str(tmp_path / "notes")}
    (tmp_path / "mine.py").write_text(ESTIMATOR.format(**names, most_seconds=MOST_SECONDS))
    for number in range(NUM_VIDEOS):
        write_raw(tmp_path / "raw" / f"dance_{number}.mp4", 16 + number)
    blue = [draw((96, 64), [(0.3, 0.3, 0.3)], background=(20, 20, 230))] * 16
    write_raw(tmp_path / "raw" / "bad.mp4", frames=blue)
    mine = tmp_path / "mine.py"
    flags = ["--pose_estimator", f"{mine}:find", "--music_features", f"{mine}:level"]

    def run(data_name: str, *flags_of_run: str):
        folders = ["--input_dir", str(tmp_path / "raw"), "--output_dir", str(tmp_path / data_name)]
        command = [sys.executable, "prepare_guidance.py", *folders, *flags, *flags_of_run]
        return started(command, tmp_path / f"{data_name}.out")

    with run("data", "--executor", "ray", "--ray_address", address) as process:
        is_at_work = (tmp_path / "notes" / "second").exists
        wait_until(is_at_work, process, tmp_path / "data.out")
        end_session(second)
        (tmp_path / "notes" / "lost").touch()
        assert process.wait(MOST_SECONDS) == 2, (tmp_path / "data.out").read_text()
    told = (tmp_path / "data.out").read_text()
    errors = [line for line in told.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and "bad.mp4" in errors[0], told
    assert "the process that prepared it ended 3 times (WorkerCrashedError)" in errors[0]
    with run("one", "--num_workers", "1") as process:
        process.wait(MOST_SECONDS)
    assert len(list((tmp_path / "one" / "metadata").iterdir())) == NUM_VIDEOS
    assert files_below(tmp_path / "data") == files_below(tmp_path / "one")


@needs_ray
def test_no_cluster_at_the_address(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_tasks, "TURN_SECONDS", 0.1)
    source = type("Source", (), {})()
    with pytest.raises(ray_tasks.ConfigError, match="--ray_address 127.0.0.1:1: no Ray cluster"):
        list(run_on_ray([source], Settings(), tmp_path, address="127.0.0.1:1"))
