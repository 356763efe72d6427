"""Names that Windows does not take."""

from pathlib import Path

import pytest

from system.file_names import long_path_problem, windows_problem

NAMES = ["CON", "nul", "aux", "com1", "aux.dance", "dance.", "dance ", "a:b", "a\tb"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_named(name):
    assert "Windows" in windows_problem(name)


@pytest.mark.parametrize("name", ["dance", "console", "com10", "Beyonc\xe9 \u2013 live", ".dance", "a b.c"])
def test_others_are_fine(name):
    assert windows_problem(name) is None


def test_long_paths_are_counted():
    assert long_path_problem("dance", Path("/data")) is None
    assert "Windows takes 259" in long_path_problem("d" * 120, Path("/data"))
