"""The settings of a run from its command line and YAML file.

A flag beats the YAML file, which beats accelerate's configuration, which beats the default; an unknown name
is an error that offers the nearest one.
"""

import argparse
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from system.command_line import Parser, nearest
from system.errors import ConfigError

from . import from_accelerate
from .checks import check_arguments
from .fields import (
    ALIASES,
    FLAGS,
    RunSettings,
    TrainingArguments,
    aliases_of,
    default_of,
    flags_of,
    shown,
)
from .sources import Sources

__all__ = ["ALIASES", "FLAGS", "TrainingArguments", "build_parser", "default_of", "parse_arguments"]


def build_parser(kind: type[RunSettings] = TrainingArguments) -> argparse.ArgumentParser:
    """Return the parser; a flag that was not given leaves no trace in its namespace."""
    parser = Parser(
        prog=kind.program,
        usage="%(prog)s [--config FILE.yaml] [--FLAG VALUE ...]",
        argument_default=argparse.SUPPRESS,
        description=kind.description,
    )
    parser.add_argument("--config", help="YAML file whose keys are the flag names; flags beat it")
    for name, entry in flags_of(kind).items():
        options = [f"--{option}" for option in (name, *entry.metadata["aliases"])]
        default = shown(default_of(name, kind))
        help_text = f"{entry.metadata['help']} (default: {default})".replace("%", "%%")
        keywords = _argparse_keywords(entry.type)
        if entry.metadata["switch"]:
            on, off = entry.metadata["switch"]
            if not isinstance(on, list):  # argparse has nothing to put for a list: see parse_arguments
                keywords |= {"nargs": "?", "const": on}
            help_off = f"= {shown(off)}"
            parser.add_argument(f"--no-{name}", dest=name, action="store_const", const=off, help=help_off)
        if entry.metadata["choices"] and "type" in keywords:
            keywords["choices"] = entry.metadata["choices"]
        parser.add_argument(*options, dest=name, help=help_text, **keywords)
    return parser


def parse_arguments(
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    kind: type[RunSettings] = TrainingArguments,
    check: Callable[[RunSettings], None] = check_arguments,
) -> RunSettings:
    """Return the checked settings of a command line, their sources with them. Raises ConfigError.

    They are of the class `kind`, a trainer's own, and what `check` raises is wrong with them.
    """
    given = vars(build_parser(kind).parse_args(argv))
    for name, entry in flags_of(kind).items():
        if given.get(name) == [] and entry.metadata["switch"]:
            given[name] = entry.metadata["switch"][0]
    config_path = given.pop("config", None)
    settings = _read_yaml(config_path, kind) if config_path is not None else {}
    if "train_data_dir" in given and "validation_data_dir" in settings and "validation_data_dir" not in given:
        # The YAML's validation data belongs to the YAML's training data, not to the user's.
        print(f"note: --train_data_dir given, so validation_data_dir of {config_path} is not used")
        del settings["validation_data_dir"]
    taken, origins = from_accelerate.take_settings(environ, {*settings, *given, *kind.not_offered})
    merged = _merge(kind, {"accelerate": taken, f"--config {config_path}": settings, "command line": given})
    check(merged)
    deciders = dict.fromkeys(kind.not_offered, kind.program)
    deciders |= dict.fromkeys(settings, config_path) | dict.fromkeys(given, "a flag")
    decided = {name: (getattr(merged, name), decider) for name, decider in deciders.items()}
    merged.sources = Sources(
        flags=[*given], yaml=[name for name in settings if name not in given], yaml_path=config_path,
        accelerate=origins, beaten=from_accelerate.beaten_lines(environ, decided),
    )  # fmt: skip
    return merged


def _argparse_keywords(annotation) -> dict:
    """Return argparse keywords for a field's type: bool, int, float, str, X | None, list[X]."""
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if typing.get_origin(annotation) is list:
        return {"type": typing.get_args(annotation)[0], "nargs": "*" if annotation == list[str] else "+"}
    scalars = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    if not scalars:
        return {"type": annotation}

    def optional(text):
        return None if text.lower() in ("none", "null") else scalars[0](text)

    optional.__name__ = scalars[0].__name__  # argparse names the type in its message
    return {"type": optional}


PATH_FIX = "in double quotes YAML reads a backslash as more than itself: write Windows paths without quotes"


def _read_yaml(path: str, kind: type[RunSettings]) -> dict:
    """Return the keys of a YAML file under the flags' own names. Raises ConfigError for an unknown key."""
    try:
        loaded = OmegaConf.load(path)
    except FileNotFoundError:
        raise ConfigError(f"--config {path}: no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config {path}: is not text in UTF-8: save it as UTF-8") from None
    except Exception as error:  # whatever the YAML parser finds
        raise ConfigError(
            f"--config {path}: not a YAML file of flags: {' '.join(str(error).split())}"
            f"{f'; {PATH_FIX}' if re.search('escape character|hexa?decimal', str(error)) else ''}"
        ) from None
    if not OmegaConf.is_dict(loaded):
        raise ConfigError(f"--config {path}: expected lines of NAME: VALUE")
    settings, flags, aliases = {}, flags_of(kind), aliases_of(kind)
    for key, value in OmegaConf.to_container(loaded, resolve=True).items():
        name = aliases.get(key, key)
        if name not in flags:
            raise ConfigError(f"--config {path}: unknown key {key!r}{nearest(str(key), [*flags, *aliases])}")
        if name in settings:
            raise ConfigError(f"--config {path}: {key!r} is given twice (it is also called {name!r})")
        if isinstance(value, str) and any(ord(letter) < ord(" ") for letter in value):
            raise ConfigError(f"--config {path}: {key} is {value!r}: {PATH_FIX}")
        if isinstance(value, bool) and flags[name].metadata["switch"]:
            value = flags[name].metadata["switch"][0 if value else 1]
        if value is False and "no" in (flags[name].metadata["choices"] or ()):
            value = "no"  # which YAML reads as false where it has no quotes
        is_list = typing.get_origin(flags[name].type) is list
        settings[name] = [value] if is_list and not isinstance(value, list) else value
    return settings


def _merge(kind: type[RunSettings], sources: dict[str, dict]) -> RunSettings:
    """Return defaults, overwritten by the settings of each source, the last one last; types checked."""
    schema = OmegaConf.structured(kind)
    for source, values in sources.items():
        for name, value in values.items():
            try:
                OmegaConf.update(schema, name, value, merge=False)
            except OmegaConfBaseException as error:
                reason = str(error).splitlines()[0]
                raise ConfigError(f"{source}: {name}: {value!r}: {reason}") from None
    return OmegaConf.to_object(schema)
