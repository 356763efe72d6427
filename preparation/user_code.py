"""Users' own Python, named MODULE:NAME on the command line."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from system.errors import ConfigError


@functools.cache  # a module is run once in a process, not once a piece: it may load a model
def load_user_object(spec: str, flag: str) -> Callable:
    """The function or class that MODULE:NAME names; MODULE is dotted, or a .py file. Raises ConfigError."""
    module_name, separator, name = spec.rpartition(":")
    if not (separator and module_name and name):
        raise ConfigError(f"{flag} {spec}: expected MODULE:NAME, for example my_code.py:my_function")
    found = getattr(_import_module(module_name, f"{flag} {spec}"), name, None)
    if not callable(found):
        raise ConfigError(f"{flag} {spec}: {module_name} has no function or class {name}")
    return found


def _import_module(name: str, what: str) -> ModuleType:
    if name.endswith(".py"):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"{what}: no such file: {path.absolute()}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # where dataclasses look themselves up
        with _own_faults_named(what):
            spec.loader.exec_module(module)
        return module
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with _own_faults_named(what):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not name.startswith(error.name):
                raise
            raise ConfigError(f"{what}: no module {name} in {os.getcwd()} or the Python path") from None


@contextlib.contextmanager
def _own_faults_named(what: str) -> Iterator[None]:
    """A fault of the user's own module becomes one line that says where it is."""
    try:
        yield
    except ConfigError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what}: it imports {error.name}, which is not installed") from error
    except (Exception, SystemExit) as error:  # a script without a main guard may call exit()
        place = traceback.extract_tb(error.__traceback__)[-1]
        file_name, line = place.filename, place.lineno
        reason = str(error)
        if isinstance(error, SyntaxError):  # the module did not run: the last place is Python's own
            file_name, line, reason = error.filename, error.lineno, error.msg
        problem = " ".join(f"{type(error).__name__}: {reason}".splitlines())
        raise ConfigError(f"{what}: {problem} ({Path(file_name or '').name}, line {line})") from error
