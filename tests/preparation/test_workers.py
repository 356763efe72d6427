"""A worker that dies takes one video with it; one that hangs, or cannot be started, is named."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from preparation import workers
from preparation.prepare_video import VideoResult
from preparation.settings import Settings
from preparation.sources import Source
from preparation.workers import Done, run_workers
from system import processes
from system.errors import RunError
from system.patience import Patience

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forked, so that it starts at once")
SOURCES = [Source(Path(f"{name}.mp4"), name) for name in ("a", "b", "c")]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Yield a function that runs workers whose work on a video is `work(source)`."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: fork)
    monkeypatch.setattr(workers, "make_pose_estimator", lambda settings: None)
    monkeypatch.setattr(workers.cv2, "setNumThreads", lambda number: None)  # it waits for threads left behind

    def run(work, num_workers=2):
        monkeypatch.setattr(workers, "prepare_video", lambda source, *more: work(source))
        events = run_workers(SOURCES, Settings(), tmp_path, num_workers=num_workers)
        return {event.source.name: event for event in events if isinstance(event, Done)}

    yield run
    for process in multiprocessing.active_children():  # forked, they have both ends of their pipe
        process.kill()
        process.join()


def done(source):
    return VideoResult(source.path.name)


def test_a_dead_worker_takes_one_video_with_it(run):
    def die_of_a(source):
        if source.name == "a":
            os.kill(os.getpid(), signal.SIGKILL)
        return done(source)

    events = run(die_of_a, num_workers=1)
    assert [name for name, event in events.items() if event.result] == ["b", "c"]
    fault = events["a"].fault
    assert fault.problem == "the process that prepared it ended (killed by signal 9)"
    assert "use fewer --num_workers" in fault.fix and not events["a"].is_fatal


def test_a_worker_that_hangs_is_named_and_has_an_end(run, monkeypatch, capsys):
    monkeypatch.setattr(workers, "TURN_SECONDS", 0.02)
    monkeypatch.setattr(workers, "Patience", lambda: Patience(1, 2))
    with pytest.raises(RunError, match="in vain for a.mp4, b.mp4: see that its drive answers"):
        run(lambda source: time.sleep(600))
    assert capsys.readouterr().err == "waiting for a.mp4, b.mp4, 1 s so far\n"
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("num_started", [0, 1])
def test_fewer_processes_than_asked_for(run, monkeypatch, capsys, num_started):
    fork, started = os.fork, []

    def fork_or_fail():
        if len(multiprocessing.active_children()) >= num_started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(True)
        return fork()

    monkeypatch.setattr(os, "fork", fork_or_fail)
    if num_started:
        assert list(run(done)) == ["a", "b", "c"] and len(started) >= 1
        assert "note: 1 at a time, for no more processes can be started" in capsys.readouterr().err
    else:
        with pytest.raises(RunError, match="no process can be started to prepare a video"):
            run(done)


def test_a_worker_that_not_even_a_kill_ends_is_not_waited_for(run, monkeypatch):
    """As where its drive is gone: what was waited for in vain is told all the same."""
    monkeypatch.setattr(workers, "Patience", lambda: Patience(1, 1))
    monkeypatch.setattr(workers, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(processes, "KILL_SECONDS", 0.01)
    monkeypatch.setattr(processes, "_killed", held := [])
    process = multiprocessing.get_context("fork").Process
    with monkeypatch.context() as unkillable, pytest.raises(RunError, match="in vain for a.mp4"):
        unkillable.setattr(process, "kill", lambda self: None)
        run(lambda source: time.sleep(30))
    assert held and all(process in multiprocessing.active_children() for process in held)
