"""Stopping on request."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from system.stop_request import StopRequest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_old_handler_comes_back(number):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        assert stop.signal_number == 0
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
    assert signal.getsignal(number) == before


def test_a_second_signal_leaves_at_once_from_wherever():
    # Within one long operation, where Python's own handlers do not run; the first is only noted.
    code = (
        "import torch\n"
        "from system.stop_request import StopRequest\n"
        "torch.set_num_threads(1)\n"
        "with StopRequest():\n"
        "    print('ready', flush=True)\n"
        "    big = torch.ones(9000, 9000)\n"
        "    big @ big\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # the same request, handed on by a launcher
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == 143


def start(code):
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


WORKS = """
import os, sys, time
from system import stop_request
from system.command_line import run_main
stop_request.GRACE_SECONDS = 1.0
def work():
    {0}
sys.exit(run_main("x.py", work, when_stopped="stopped; go on"))
"""
READY = "print('ready', flush=True)"
# Python's handlers do not run while a mutex is awaited that nobody frees.
BEYOND_PYTHON = (
    "import ctypes; mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock; "
    f"{READY}; lock(mutex); lock(mutex)"
)
WAITS = {
    "in Python": f"{READY}; time.sleep(60)",
    "beyond Python": BEYOND_PYTHON,
    "tidying up": f"\n    try: {READY}; time.sleep(60)\n    finally: time.sleep(60)",
}


@pytest.mark.skipif(sys.platform != "linux", reason="Windows sends no signals, macOS has other mutexes")
@pytest.mark.parametrize("where", WAITS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_is_enough_wherever_it_waits(where, number):
    process = start(WORKS.format(WAITS[where]))
    process.send_signal(number)
    _, stderr = process.communicate(timeout=10)
    assert process.returncode == 128 + number
    assert stderr.strip() == "x.py: stopped; go on"


@pytest.mark.skipif(sys.platform != "linux", reason="a mutex of the GNU library")
def test_a_noted_request_leaves_a_wait():
    process = start(
        "from system import stop_request\n"
        "stop_request.GRACE_SECONDS = 0.2\n"
        "with stop_request.StopRequest() as stop, stop.waiting(lambda: 'stopped while it waited'):\n"
        f"    {BEYOND_PYTHON}\n"
    )
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=10)
    assert (process.returncode, stderr) == (143, "\nstopped while it waited\n")
