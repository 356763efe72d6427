"""Users' own modules, functions and losses, from their own files; a fault in them is one line."""

import sys

import pytest

from system.errors import ConfigError
from system.user_code import import_user_modules, load_user_object
from training.objective import load_extra_loss

LOSSES = """
def custom_loss(model_pred, target, guidance_condition):
    return (model_pred - target).abs().mean()

def two_arguments(model_pred, target):
    return 0

not_a_function = 3
"""


@pytest.fixture
def losses_path(tmp_path):
    path = tmp_path / "losses_of_mine.py"
    path.write_text(LOSSES)
    return path


def test_a_loss_by_file_and_by_module_name(losses_path, monkeypatch):
    assert load_extra_loss(None) is None
    assert load_extra_loss(f"{losses_path}:custom_loss").__name__ == "custom_loss"
    monkeypatch.chdir(losses_path.parent)
    assert load_extra_loss("losses_of_mine:custom_loss").__name__ == "custom_loss"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("custom_loss", "--loss custom_loss: expected MODULE:NAME"),
        ("{path}:other", "has no function or class other"),
        ("{path}:not_a_function", "has no function or class not_a_function"),
        ("{path}:two_arguments", "must take .model_pred, target, guidance_condition."),
        ("nowhere.py:custom_loss", "no such file: .*nowhere.py"),
        ("no_such_module_here:custom_loss", "no module no_such_module_here in "),
    ],
)
def test_wrong_losses(losses_path, name, message):
    with pytest.raises(ConfigError, match=message):
        load_extra_loss(name.format(path=losses_path))


@pytest.mark.parametrize("names", [["{}.py", "{}.py", "{}"], ["{}", "{}.py"]])
def test_a_module_is_run_once_however_it_is_named(tmp_path, monkeypatch, names):
    """It may load a model, or register what may be registered once."""
    stem = f"mine_{len(names)}"
    path = tmp_path / f"{stem}.py"
    path.write_text(
        "import pathlib\npathlib.Path(__file__).with_suffix('.log').open('a').write('run')\n"
        "def zeros():\n    return 0\n"
    )
    monkeypatch.chdir(tmp_path)
    import_user_modules([name.format(stem) for name in names])
    assert load_user_object(f"{path}:zeros", "--flag")() == 0
    assert path.with_suffix(".log").read_text() == "run"


def test_a_file_with_the_name_of_another_module_takes_not_its_place(tmp_path):
    (tmp_path / "json.py").write_text("def dumps(value):\n    return 'mine'\n")
    assert load_user_object(f"{tmp_path / 'json.py'}:dumps", "--flag")(1) == "mine"
    assert sys.modules["json"].dumps(1) == "1"


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("def f(:", r"SyntaxError: .* \(broken.py, line 1\)"),
        ("import not_there_at_all", r"imports not_there_at_all, which is not installed \(broken.py, line 1"),
        ("\n1 / 0", r"ZeroDivisionError: division by zero \(broken.py, line 2\)"),
        ("import json\n\njson.loads('{')", r"JSONDecodeError: .* \(broken.py, line 3\)"),
        ("import sys\nsys.exit(5)", r"SystemExit: 5 \(broken.py, line 2\)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by_path", [True, False])
def test_a_module_that_fails_itself_is_one_line(tmp_path, monkeypatch, code, problem, by_path):
    (tmp_path / "broken.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(ConfigError, match=f"--guidance_modules .*broken.*: .*{problem}") as caught:
        import_user_modules([str(tmp_path / "broken.py") if by_path else "broken"])
    assert len(str(caught.value).splitlines()) == 1
    assert "broken" not in sys.modules


def test_a_missing_package_is_not_taken_for_the_module_whose_name_begins_alike(tmp_path, monkeypatch):
    (tmp_path / "fancy_encoders.py").write_text("import fancy")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="fancy_encoders: it imports fancy, which is not installed"):
        import_user_modules(["fancy_encoders"])
    with pytest.raises(ConfigError, match="no module fancy.encoders in "):
        import_user_modules(["fancy.encoders"])


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for folder, number in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"class Mine:\n    number = {number}\n")
    first, second = (load_user_object(f"{tmp_path / folder / 'mine.py'}:Mine", "--x") for folder in "ab")
    assert (first.number, second.number) == (1, 2)
    assert sys.modules[first.__module__].Mine is first and sys.modules[second.__module__].Mine is second
