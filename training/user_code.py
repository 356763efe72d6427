"""Users' own Python: modules that register guidance encoders, and a loss function."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from system.errors import ConfigError

from .objective import check_extra_loss


def import_user_modules(names: Sequence[str]) -> None:
    """Import what --guidance_modules names; importing registers the encoders. Raises ConfigError."""
    for name in names:
        _import_module(name, "--guidance_modules")


def load_extra_loss(spec: str | None) -> Callable | None:
    """Return the function of --loss MODULE:FUNCTION, or None. Raises ConfigError."""
    if spec is None:
        return None
    module_name, separator, function_name = spec.rpartition(":")
    if not separator or not module_name:
        raise ConfigError(f"--loss {spec}: expected MODULE:FUNCTION, for example my_losses:custom_loss")
    function = getattr(_import_module(module_name, "--loss"), function_name, None)
    if not callable(function):
        raise ConfigError(f"--loss {spec}: module {module_name} has no function {function_name}")
    check_extra_loss(function, spec)
    return function


def _import_module(name: str, flag: str) -> ModuleType:
    """Import a module by dotted name, from the working folder too, or by the path of its .py file."""
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise ConfigError(f"{flag} {name}: no such file")
        module_name = Path(name).stem
        if module_name in sys.modules and getattr(sys.modules[module_name], "__file__", None) == name:
            return sys.modules[module_name]
        spec = importlib.util.spec_from_file_location(module_name, name)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        spec.loader.exec_module(module)
        return module
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise  # the module is there, and something that it imports is not
        raise ConfigError(
            f"{flag} {name}: no module of that name in {os.getcwd()} or the Python path"
        ) from None
