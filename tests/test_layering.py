"""Who may import whom: models and datasets know nothing of the rest, training nothing of datasets."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = {"datasets", "models", "pipelines", "preparation", "training"}
MAY_IMPORT = {
    "datasets": set(),
    "models": set(),
    "pipelines": {"models", "datasets"},
    "preparation": {"datasets"},
    "training": {"models", "pipelines"},
}
MODULES = sorted(path for package in MAY_IMPORT for path in (REPOSITORY / package).rglob("*.py"))
TOP_LEVEL = {path.stem for path in REPOSITORY.glob("*.py")} | {"tests", "benchmarks", "assets", "scripts"}


def imported_packages(path: Path) -> set[str]:
    """Return the first words of all absolute imports of a file, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{path}: leaves its package by a relative import"
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_layers(path):
    package = path.relative_to(REPOSITORY).parts[0]
    ours = imported_packages(path) & (PACKAGES | TOP_LEVEL)
    assert ours - {package} <= MAY_IMPORT[package]


def test_there_is_no_drawer_for_the_rest():
    assert not (REPOSITORY / "utils").exists()
    assert all((REPOSITORY / package / "__init__.py").exists() for package in PACKAGES)
