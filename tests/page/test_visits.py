"""A visit's files go with it, and its job stops."""

import threading

import pytest

from page.visits import Visits
from system.errors import Cancelled


def test_a_visits_files_go_with_it(tmp_path):
    visits = Visits(tmp_path)
    shared, own = tmp_path / "shared.png", tmp_path / "own.png"
    for path in (shared, own):
        path.touch()
    visits.keep("one", shared)
    visits.keep("one", own)
    visits.keep("two", shared)
    folder = visits.folder("one")
    assert visits.folder("one") == folder != visits.folder("two")
    (folder / "result.mp4").touch()
    visits.leave("one")
    assert not folder.exists() and not own.exists() and shared.exists()
    visits.leave("two")
    assert list(tmp_path.iterdir()) == []
    visits.leave("nobody")


def test_a_job_is_stopped_and_cleared_away_when_its_visit_ends(tmp_path):
    visits = Visits(tmp_path)
    with visits.job("one") as stop:
        folder = visits.folder("one")
        assert not stop.is_set()
        visits.leave("one")
        assert stop.is_set() and folder.exists()  # the job is still in its step
    assert not folder.exists()


def test_one_job_at_a_time_and_one_that_waits_can_be_stopped(tmp_path):
    visits, seen = Visits(tmp_path), []

    def wait_for_turn():
        try:
            with visits.job("two"):
                seen.append("ran")
        except Cancelled:
            seen.append("cancelled")

    with visits.job("one"):
        thread = threading.Thread(target=wait_for_turn)
        thread.start()
        while "two" not in visits._stops:
            thread.join(0.001)
        assert seen == []
        visits.stop("two")
    thread.join(5)
    assert seen == ["cancelled"]


def test_at_the_end_all_jobs_stop(tmp_path, monkeypatch):
    monkeypatch.setattr("page.visits.PATIENCE_SECONDS", 0.01)
    visits = Visits(tmp_path)
    with visits.job("one") as stop:
        visits.end()  # does not wait for ever
        assert stop.is_set()
    visits.end()


def test_the_next_job_runs_after_one_that_failed(tmp_path):
    visits = Visits(tmp_path)
    with pytest.raises(ValueError), visits.job("one"):
        raise ValueError
    with visits.job("one") as stop:
        assert not stop.is_set()
