"""Stopping on request."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from system import stop_request
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


def test_ctrl_c_that_was_ignored_from_the_start_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as outer, StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert (outer.signal_number, stop.signal_number) == (0, 0)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal_number == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform != "linux", reason="forked")
def test_the_watch_ends_where_a_forked_process_lives_on():
    before = set(threading.enumerate())
    with StopRequest():
        (watch,) = set(threading.enumerate()) - before
        heir = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        heir.start()
    watch.join(timeout=60)
    heir.kill()
    heir.join()
    assert not watch.is_alive()


# ---- what the watching thread makes of signals that come at these times ----


@pytest.mark.parametrize(
    ("seconds", "codes"),
    [([1], []), ([1, 1.05, 1.09], []), ([1, 1.05, 1.15], [143]), ([1, 9], [143])],
    ids=["one", "one, handed on by launchers", "handed on, then a second", "a second"],
)
def test_a_second_signal_leaves_and_one_handed_on_does_not(seconds, codes, monkeypatch):
    left, clock = [], iter(seconds)
    monkeypatch.setattr(stop_request.os, "_exit", left.append)
    monkeypatch.setattr(stop_request, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    incoming, outgoing = socket.socketpair()
    outgoing.sendall(bytes([signal.SIGTERM] * len(seconds)))
    outgoing.close()
    StopRequest()._watch(incoming)
    assert left == codes


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
stop_request.GRACE_SECONDS = {grace}
def work():
    {wait}
sys.exit(run_main("x.py", work, when_stopped="stopped; go on"))
"""
READY = "print('ready', flush=True)"
# Python's handlers do not run while a mutex is awaited that nobody frees.
BEYOND_PYTHON = (
    "import ctypes; mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock; "
    f"{READY}; lock(mutex); lock(mutex)"
)
WAITS = {  # with a grace that is endless where none is needed, on a busy machine too
    "in Python": (f"{READY}; time.sleep(600)", 600),
    "beyond Python": (BEYOND_PYTHON, 0.2),
    "tidying up": (f"\n    try: {READY}; time.sleep(600)\n    finally: time.sleep(600)", 0.2),
}
on_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="Windows sends no signals, macOS has other mutexes"
)


@on_linux
@pytest.mark.parametrize("where", WAITS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_is_enough_wherever_it_waits(where, number):
    wait, grace = WAITS[where]
    process = start(WORKS.format(wait=wait, grace=grace))
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert stderr.strip() == "x.py: stopped; go on"


@on_linux
def test_a_second_signal_leaves_at_once_from_beyond_python():
    process = start(
        f"from system.stop_request import StopRequest\nwith StopRequest():\n    {BEYOND_PYTHON}\n"
    )
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert process.wait(timeout=1) == 143


@on_linux
def test_a_noted_request_leaves_a_wait():
    process = start(
        "from system import stop_request\n"
        "stop_request.GRACE_SECONDS = 0.2\n"
        "with stop_request.StopRequest() as stop, stop.waiting(lambda: 'stopped while it waited'):\n"
        f"    {BEYOND_PYTHON}\n"
    )
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (143, "\nstopped while it waited\n")
