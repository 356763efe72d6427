"""The house in figures: folders that one takes in at a glance, short functions with few parameters.

Product code is every module outside `tests/` and `benchmarks/`.
"""

import ast
import collections
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NOT_OURS = {"venv", "data", "demo_data", "outputs", "logs", "wandb"}  # of a user, see .gitignore
MODULES = {
    path: (REPOSITORY / path).read_text(encoding="utf-8")
    for path in (found.relative_to(REPOSITORY) for found in REPOSITORY.glob("**/*.py"))
    if not (path.parts[0].startswith(".") or path.parts[0] in NOT_OURS)
}
PRODUCT = {path: text for path, text in MODULES.items() if path.parts[0] not in ("tests", "benchmarks")}
MOST_MODULES, MOST_PARAMETERS, MOST_LINES, MOST_LINES_OF_FIT = 12, 5, 50, 90


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield (file:line name, node) of every product function, methods and inner functions too."""
    for path, text in sorted(PRODUCT.items()):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.as_posix()}:{node.lineno} {node.name}", node


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """Return the named parameters, keyword-only ones too, without self, cls, *args and **kwargs."""
    named = [*node.args.posonlyargs, *node.args.args]
    if named and named[0].arg in ("self", "cls"):
        del named[0]
    return [*named, *node.args.kwonlyargs]


def test_text_is_utf_8_on_every_system():
    """By itself Python takes the system's encoding: cp949 on a Korean Windows, ASCII under LANG=C."""
    found = [
        f"{path.as_posix()}:{node.lineno}" for path, text in sorted(MODULES.items())
        if path.parts[0] != "tests" for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and lacks_encoding(node)
    ]  # fmt: skip
    assert found == []


def lacks_encoding(node: ast.Call) -> bool:
    """Return whether a call reads or writes text, and leaves its encoding to the system."""
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    is_method = isinstance(node.func, ast.Attribute)
    name = node.func.attr if is_method else getattr(node.func, "id", "")
    owner = ast.unparse(node.func.value) if is_method else ""
    if "encoding" in keywords:
        return False
    if name in ("open", "fdopen") and owner not in ("os", "av", "Image", "wave"):
        places = node.args if is_method and owner != "io" else node.args[1:]
        mode = keywords.get("mode", places[0] if places else None)
        return mode is None or "b" not in ast.unparse(mode)
    return name in ("read_text", "write_text") or "text" in keywords


def test_folders_hold_few_modules():
    folders = collections.Counter(
        path.parent.as_posix() for path in MODULES
        if path.parts[0] != "tests" and path.name != "__init__.py"
    )  # fmt: skip
    assert {folder: count for folder, count in folders.items() if count > MOST_MODULES} == {}


def test_few_functions_take_the_whole_settings():
    takers = [name for name, node in functions() if takes_settings(name, node)]
    assert len(takers) <= 15, f"{len(takers)}:\n" + "\n".join(takers)


def takes_settings(name: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether a parameter is the training's settings; `arguments` of other scripts are their own."""
    is_training = name.startswith(("train", "caching/", "evaluation/", "pipelines/", "models/"))
    return any(
        "TrainingArguments" in ast.unparse(parameter.annotation) if parameter.annotation is not None
        else is_training and parameter.arg == "arguments"
        for parameter in parameters(node)
    )  # fmt: skip


def test_functions_are_short():
    long = []
    for name, node in functions():
        num_lines = node.end_lineno - node.lineno + 1
        is_fit = node.name == "fit" and name.startswith(("training/", "train_guidance.py"))
        if num_lines > (MOST_LINES_OF_FIT if is_fit else MOST_LINES):
            long.append(f"{name}: {num_lines} lines")
    assert long == []
    assert any(node.name == "fit" for _, node in functions())


def test_few_functions_have_many_parameters():
    counts = {name: len(parameters(node)) for name, node in functions()}
    many = {name: count for name, count in counts.items() if count > MOST_PARAMETERS}
    assert len(many) <= 0.03 * len(counts), f"{len(many)} of {len(counts)}:\n" + "\n".join(many)
