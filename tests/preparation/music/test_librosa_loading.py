"""librosa's functions are compiled by one process at a time, in a folder of our own."""

import threading
from pathlib import Path

import pytest
from filelock import FileLock

from preparation import ConfigError
from preparation.music.librosa_loading import load_librosa

numba = pytest.importorskip("numba", reason="pip install -r requirements-prepare.txt")


@pytest.fixture
def anew(monkeypatch):
    """The next call loads as the first one of a process does."""
    load_librosa()
    load_librosa.cache_clear()
    monkeypatch.setattr(numba.config, "CACHE_DIR", numba.config.CACHE_DIR)


def test_compiled_functions_are_in_a_folder_of_our_own():
    librosa = load_librosa()
    folder = Path(numba.config.CACHE_DIR)
    assert Path(librosa.__file__).parent not in folder.parents
    assert list(folder.rglob("guf-beat*.nbc"))


def test_a_process_waits_while_another_one_compiles(anew):
    loading = threading.Thread(target=load_librosa)
    with FileLock(Path(numba.config.CACHE_DIR) / ".lock"):
        loading.start()
        loading.join(0.3)
        assert loading.is_alive()
    loading.join(60)
    assert not loading.is_alive()


def test_user_folder_is_taken(anew, tmp_path):
    numba.config.CACHE_DIR = str(tmp_path / "compiled")
    load_librosa()
    assert (tmp_path / "compiled").is_dir()


def test_home_that_cannot_be_written_is_no_obstacle(anew, tmp_path, monkeypatch):
    (tmp_path / "home").write_text("no folder")
    numba.config.CACHE_DIR = ""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("preparation.music.librosa_loading.tempfile.gettempdir", lambda: str(tmp_path))
    load_librosa()
    assert Path(numba.config.CACHE_DIR).parent == tmp_path


def test_user_folder_that_cannot_be_written_is_named(anew, tmp_path):
    (tmp_path / "file").write_text("no folder")
    numba.config.CACHE_DIR = str(tmp_path / "file")
    with pytest.raises(ConfigError, match="NUMBA_CACHE_DIR=.*file cannot be written"):
        load_librosa()
