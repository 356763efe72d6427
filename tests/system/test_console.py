"""The console ends no run, whatever it is."""

import io
import os
import subprocess
import sys

import pytest

from system.console import SteadyStream, steady_console

NAMES = "Beyoncé – 안무 💃 \udcff"  # the last: a byte of a file name that is no UTF-8


@pytest.mark.parametrize("encoding", ["cp949", "ascii", "utf-8", "cp1252"])
def test_an_unknown_character_is_an_escape(encoding):
    raw = io.BytesIO()
    stream = SteadyStream(io.TextIOWrapper(raw, encoding=encoding))
    print(NAMES, file=stream, flush=True)
    written = raw.getvalue().decode(encoding)
    assert written.startswith("Beyonc") and written.endswith("\\udcff\n")


class Strange:
    """A console as some IDEs have it: neither isatty nor reconfigure, and an encoding of its own."""

    text = ""

    def write(self, text):
        self.text += text.encode("ascii").decode()


def test_a_console_of_another_kind_will_do():
    stream = SteadyStream(strange := Strange())
    print("é", file=stream, flush=True)
    assert strange.text == "\\xe9\n" and not stream.isatty()


class Full(io.StringIO):
    def write(self, text):
        raise OSError(28, "No space left on device")


def test_what_cannot_be_written_is_lost():
    closed = io.StringIO()
    closed.close()
    for stream in map(SteadyStream, (Full(), closed)):
        print("a line", file=stream, flush=True)
        assert stream.write("a line") == len("a line")  # nobody tries the rest again


def test_no_console_at_all(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    with steady_console():
        print("a line", flush=True)
    assert sys.stdout is None


CODE = """
import sys
from system.command_line import run_main
def work():
    for number in range(2_000):
        print("line", number, "\\xe9")
sys.exit(run_main("x.py", work))
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full disk to write to")
@pytest.mark.parametrize("where", ["a full disk", "a closed pipe"])
def test_the_exit_code_stays(where, repository):
    command = [sys.executable, "-c", CODE]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    if where == "a full disk":
        with open("/dev/full", "wb") as full:
            result = subprocess.run(
                command, cwd=repository, env=environment, stdout=full, stderr=subprocess.PIPE
            )
        assert (result.returncode, result.stderr) == (0, b"")
    else:
        reader, writer = os.pipe()
        os.close(reader)
        result = subprocess.run(
            command, cwd=repository, env=environment, stdout=writer, stderr=subprocess.PIPE
        )
        os.close(writer)
        assert (result.returncode, result.stderr) == (0, b"")
