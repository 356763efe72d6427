"""scripts/set_up.py makes the environment and installs what changed; pip is a list of calls here."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def set_up(monkeypatch, tmp_path):
    """The module, with its repository and environment under tmp_path and a list of calls in place of pip."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import set_up as module

    calls = []

    def run(command, **_):
        calls.append(command)
        return subprocess.CompletedProcess(command, module.exit_code)

    monkeypatch.setattr(module, "exit_code", 0, raising=False)
    monkeypatch.setattr(module, "calls", calls, raising=False)
    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    monkeypatch.setattr(module, "is_environment_active", lambda: True)
    monkeypatch.setattr(module.sys, "prefix", str(tmp_path / "environment"))
    (tmp_path / "environment").mkdir()
    (tmp_path / "requirements.txt").write_text("torch\n")
    (tmp_path / "requirements-dev.txt").write_text("pytest\n")
    return module


def test_set_up_installs_only_what_changed(set_up, tmp_path, capsys):
    assert set_up.main(["requirements.txt"]) == 0
    assert capsys.readouterr().out.strip() == sys.executable
    assert len(set_up.calls) == 1 and set_up.calls[0][-2:] == ["-r", str(tmp_path / "requirements.txt")]
    assert set_up.main(["requirements.txt"]) == 0 and len(set_up.calls) == 1
    assert set_up.main(["requirements.txt", "requirements-dev.txt"]) == 0
    assert set_up.calls[1][-2:] == ["-r", str(tmp_path / "requirements-dev.txt")]
    (tmp_path / "requirements.txt").write_text("torch>=2\n")
    assert set_up.main(["requirements.txt"]) == 0 and len(set_up.calls) == 3


def test_set_up_installs_mediapipe_last_and_without_its_requirements(set_up, tmp_path):
    (tmp_path / "requirements-mediapipe.txt").write_text("mediapipe\n")
    assert set_up.main(["requirements-mediapipe.txt", "requirements.txt"]) == 0
    first, second = set_up.calls
    assert first[-2:] == ["-r", str(tmp_path / "requirements.txt")] and "--no-deps" not in first
    assert second[-3:] == ["--no-deps", "-r", str(tmp_path / "requirements-mediapipe.txt")]
    assert set_up.main(["requirements-mediapipe.txt", "requirements.txt"]) == 0 and len(set_up.calls) == 2


def test_set_up_tries_again_after_a_failed_install(set_up, capsys):
    set_up.exit_code = 1
    assert set_up.main(["requirements.txt"]) == 2
    assert "pip could not install requirements.txt" in capsys.readouterr().err
    set_up.exit_code = 0
    assert set_up.main(["requirements.txt"]) == 0 and len(set_up.calls) == 2


def test_set_up_makes_an_environment_when_none_is_active(set_up, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(set_up, "is_environment_active", lambda: False)
    (tmp_path / ".venv").mkdir()
    assert set_up.main(["requirements.txt"]) == 0
    python = set_up.environment_python(tmp_path / ".venv")
    assert capsys.readouterr().out.strip() == str(python)
    assert set_up.calls[0][1:] == ["-m", "venv", str(tmp_path / ".venv")] and set_up.calls[1][0] == str(
        python
    )
    assert set_up.main(["requirements.txt"]) == 0 and len(set_up.calls) == 2
