"""What CHANGELOG.md promises to stay importable and runnable is."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
PROMISES = TEXT.split("## Names that stay importable\n")[1].split("\n## ")[0]
LINES = re.findall(r"^- `(.+)`$", PROMISES, re.M)
COMMANDS = [line.removeprefix("python ") for line in LINES if line.startswith("python ")]
NAMES = [line for line in LINES if not line.startswith("python ")]


def test_the_list_holds_what_was_promised():
    assert {"datasets.GuidanceDataset", "pipelines.champ_pipeline.ChampPipeline"} < set(NAMES)
    assert "-m datasets.demo_data" in COMMANDS and len(LINES) >= 25
    assert len(set(LINES)) == len(re.findall(r"^- ", PROMISES, re.M))


@pytest.mark.parametrize("name", NAMES)
def test_name_is_importable(name):
    module, _, attribute = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), attribute))


@pytest.mark.parametrize("command", COMMANDS)
def test_command_is_runnable(command):
    """A file that calls its `main` when it is run."""
    path = Path(command)
    if command.startswith("-m "):
        path = Path(importlib.util.find_spec(command.removeprefix("-m ")).origin)
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    calls = [node for node in tree.body if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)]
    assert len(calls) == 1 and "main(" in ast.unparse(calls[0])
    names = {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom)
             for alias in node.names}  # fmt: skip
    assert "main" in names | {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
