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
