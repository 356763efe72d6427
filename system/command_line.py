"""The command line of every script: errors of one line, the nearest flag, exit codes."""

import argparse
import contextlib
import difflib
import sys
import threading
from collections.abc import Callable, Iterable
from typing import NoReturn

from system.console import steady_console
from system.errors import ConfigError, RunError, UserError
from system.processes import leave_if_held
from system.stop_request import StopAtOnce, Stopped


class Parser(argparse.ArgumentParser):
    """argparse with unabbreviated flags; a wrong one is a ConfigError that offers the nearest."""

    def __init__(self, **settings) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        names = [option.lstrip("-") for option in self._option_string_actions]
        unknown = message.partition("unrecognized arguments: ")[2].split()
        hints = [nearest(word[2:].split("=")[0], names, "--") for word in unknown if word.startswith("--")]
        raise ConfigError(f"{message}{''.join(hints)}. --help lists all flags")


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return "; did you mean NAME?" for the end of an error, or an empty text where no name is near."""
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {prefix}{matches[0]}?" if matches else ""


def number(
    kind: type, low: float, *, above: bool = False, finite: bool = True
) -> Callable[[str], int | float]:
    """Return an argparse type: a number of at least `low`, or above it; infinite only where not `finite`."""

    def convert(text: str) -> int | float:
        value = kind(text)
        if not (value > low if above else value >= low) or (finite and value == float("inf")):
            raise argparse.ArgumentTypeError(f"must be {'above' if above else 'at least'} {low}, not {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it where the text is no number
    return convert


def run_main(script: str, work: Callable[[], int | None], *, when_stopped: str = "stopped") -> int:
    """Return the exit code of `work`, after one line to stderr where an error or a request to stop ended it.

    2: what the user gave is wrong. 1: the run could not go on. 130 and 143: stopped by Ctrl-C and SIGTERM.
    """
    code = _ended(script, work, when_stopped)
    leave_if_held(code)
    return code


def _ended(script: str, work: Callable[[], int | None], when_stopped: str) -> int:
    """Return the exit code of `work`, its last line printed."""
    is_main = threading.current_thread() is threading.main_thread()
    last_words = f"{script}: {when_stopped}"
    with steady_console(), StopAtOnce(lambda: last_words) if is_main else contextlib.nullcontext():
        try:
            return work() or 0
        except UserError as error:
            code, line = 2, f"{script}: error: {error}"
        except RunError as error:
            code, line = 1, f"{script}: error: {error}"
        except Stopped as stopped:
            code, line = 128 + stopped.signal_number, stopped.message
            line = line if line == last_words else f"{script}: {line}"
        except KeyboardInterrupt:
            code, line = 130, f"\n{last_words}"
        print(line, file=sys.stderr)
        return code
