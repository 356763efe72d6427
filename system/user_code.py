"""Users' own Python, modules or files that a flag names; a fault in it is one line with its place."""

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from system.errors import ConfigError, UserError


def import_user_modules(names: Sequence[str]) -> None:
    """Import what --guidance_modules names; importing registers the encoders. Raises ConfigError."""
    for name in names:
        _import_module(name, f"--guidance_modules {name}")


def load_user_object(spec: str, flag: str) -> Callable:
    """Return the function or class that MODULE:NAME names; MODULE is dotted, or a .py file.

    Raises ConfigError.
    """
    module_name, separator, name = spec.rpartition(":")
    if not (separator and module_name and name):
        raise ConfigError(f"{flag} {spec}: expected MODULE:NAME, for example my_code.py:my_function")
    found = getattr(_import_module(module_name, f"{flag} {spec}"), name, None)
    if not callable(found):
        raise ConfigError(f"{flag} {spec}: {module_name} has no function or class {name}")
    return found


def _import_module(name: str, what: str) -> ModuleType:
    """Return a module by its dotted name, in the working folder too, or by its file."""
    if name.endswith(".py"):
        path = Path(name).absolute()
        if not path.is_file():
            raise ConfigError(f"{what}: no such file: {path}")
        with _own_faults_named(what):
            return _run_file(path)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    with _own_faults_named(what):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(f"{what}: no module {name} in {os.getcwd()} or the Python path") from None


@functools.cache  # once per process: it may load a model, or name what may be named once
def _run_file(path: Path) -> ModuleType:
    known = sys.modules.get(path.stem)
    if getattr(known, "__file__", None) == str(path):  # imported by its name before
        return known
    # Another file's or a library's name stays theirs.
    name = path.stem if known is None else f"{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses, inspect and pickle look
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _own_faults_named(what: str) -> Iterator[None]:
    """Turn a fault of the user's own module into one line that says where it is."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a script without a main guard may call exit()
        reason = error.msg if isinstance(error, SyntaxError) else str(error)
        problem = " ".join(f"{type(error).__name__}: {reason}".splitlines())
        if isinstance(error, ModuleNotFoundError):
            problem = f"it imports {error.name}, which is not installed"
        raise ConfigError(f"{what}: {problem}{_place_of(error)}") from error


def _place_of(error: BaseException) -> str:
    """Return " (FILE, line N)": where in the user's own folder, not in a library that it called."""
    if isinstance(error, SyntaxError):  # the module did not run
        return f" ({Path(error.filename or '').name}, line {error.lineno})"
    places = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    ours = (Path(__file__), Path(importlib.__file__))
    places = [place for place in places if place[0] not in ours and not place[0].name.startswith("<frozen")]
    own = [place for place in places if place[0].parent == places[0][0].parent]
    return f" ({own[-1][0].name}, line {own[-1][1]})" if own else ""
