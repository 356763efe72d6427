"""Users' own modules and losses, from their own files."""

import pytest

from system.errors import ConfigError
from training.user_code import import_user_modules, load_extra_loss

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
        ("custom_loss", "expected MODULE:FUNCTION"),
        ("{path}:other", "has no function other"),
        ("{path}:not_a_function", "has no function not_a_function"),
        ("{path}:two_arguments", "must take .model_pred, target, guidance_condition."),
        ("nowhere.py:custom_loss", "nowhere.py: no such file"),
        ("no_such_module_here:custom_loss", "no module of that name"),
    ],
)
def test_wrong_losses(losses_path, name, message):
    with pytest.raises(ConfigError, match=message):
        load_extra_loss(name.format(path=losses_path))


def test_a_module_that_fails_itself_keeps_its_error(tmp_path, monkeypatch):
    (tmp_path / "types_of_mine.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        import_user_modules(["types_of_mine"])
    with pytest.raises(ConfigError, match="--guidance_modules nothing_of_mine"):
        import_user_modules(["nothing_of_mine"])
