"""Waits have an end, and say what they wait for."""

import subprocess
import sys

import pytest

from system.errors import RunError
from system.patience import Patience


def test_one_line_then_an_end(capsys):
    patience = Patience(note_seconds=2, most_seconds=4)
    for _ in range(3):
        patience.waited_in_vain(lambda: "sample a")
    assert capsys.readouterr().err == "waiting for sample a, 2 s so far\n"
    with pytest.raises(RunError, match="in vain for sample a: see that its drive answers"):
        patience.waited_in_vain(lambda: "sample a")


def test_the_end_says_what_to_do_about_that_wait():
    with pytest.raises(RunError, match="in vain for the others: start them$"):
        Patience(most_seconds=1, fix="start them").waited_in_vain(lambda: "the others")


def test_what_comes_starts_the_count_anew(capsys):
    patience = Patience(note_seconds=9, most_seconds=2)
    for _ in range(5):
        patience.waited_in_vain(lambda: "sample a")
        patience.restart()
    assert capsys.readouterr().err == ""
    patience.waited_in_vain(lambda: "sample a")
    with pytest.raises(RunError):
        patience.waited_in_vain(lambda: "sample a")


def test_a_wait_that_python_cannot_look_into_ends_too(repository):
    code = (
        "import time; from system import patience; patience.TURN_SECONDS = 0.01\n"
        "with patience.bounded(lambda: 'the other processes', patience.Patience(0.5, 2)): time.sleep(20)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True)
    lines = result.stderr.splitlines()
    assert result.returncode == 1
    assert lines[0].startswith("waiting for the other processes") and lines[-1].startswith("error: waited")
