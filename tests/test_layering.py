"""Who may import whom: arrows point down, from the scripts to what a run needs of the machine."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MAY_IMPORT = {
    "system": set(),
    "datasets": {"system"},
    "models": {"system"},
    "caching": {"datasets", "models", "shards", "system"},
    "pipelines": {"datasets", "models", "system"},
    "evaluation": {"datasets", "models", "caching", "pipelines", "system"},
    "preparation": {"datasets", "system"},
    "shards": {"datasets", "system"},
    "sampling": {"datasets", "models", "pipelines", "preparation", "system"},
    "page": {"datasets", "models", "pipelines", "preparation", "sampling", "system"},
    "training": {"datasets", "models", "shards", "caching", "pipelines", "evaluation", "system"},
    "demo": {"datasets", "models", "caching", "pipelines", "evaluation", "shards", "training", "system"},
}
OLD_NAMES = {"datasets/demo_data.py"}  # one-line re-exports of what has moved up
MODULES = sorted(
    path
    for package in MAY_IMPORT
    for path in (REPOSITORY / package).rglob("*.py")
    if path.relative_to(REPOSITORY).as_posix() not in OLD_NAMES
)
TOP_LEVEL = {path.stem for path in REPOSITORY.glob("*.py")} | {"tests", "benchmarks", "scripts"}


def imported_packages(path: Path) -> set[str]:
    """Return the first words of all absolute imports of a file, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{path}: leaves its folder by a relative import"
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_layers(path):
    package = path.relative_to(REPOSITORY).parts[0]
    ours = imported_packages(path) & (set(MAY_IMPORT) | TOP_LEVEL)
    assert ours - {package} <= MAY_IMPORT[package]


def test_there_is_no_drawer_for_the_rest():
    assert not (REPOSITORY / "utils").exists()
    packages = {path.parent for path in MODULES}
    assert all((package / "__init__.py").exists() for package in packages)
