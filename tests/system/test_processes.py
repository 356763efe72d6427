"""Items in several processes: one that dies, hangs or cannot be started."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from system import processes
from system.command_line import run_main
from system.errors import RunError
from system.patience import Patience
from system.processes import map_in_processes, room_for_files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forked, so that it starts at once")
ITEMS = list(range(8))


def double(item):
    return 2 * item


def die_of_three(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


def hang(item):
    time.sleep(600)


class OnceAtWork(Patience):
    """Counts from when both processes are at work: on a busy machine they start late."""

    def waited_in_vain(self, what):
        if what().startswith("0, 1"):
            super().waited_in_vain(what)


def mapped(function):
    return map_in_processes(function, ITEMS, num_workers=2, title="doubling", crashed=lambda item: "crashed")


def no_child_is_left():
    """Whether all children end soon: the pool's own thread may be about to note the end of one."""
    patience = time.monotonic() + 5
    while multiprocessing.active_children() and time.monotonic() < patience:
        time.sleep(0.01)
    return not multiprocessing.active_children()


def test_a_dead_worker_costs_one_item():
    assert mapped(die_of_three) == [0, 2, 4, "crashed", 8, 10, 12, 14]


def test_what_never_answers_is_an_error_and_is_killed(monkeypatch):
    monkeypatch.setattr(processes, "TURN_SECONDS", 0.01)
    monkeypatch.setattr(processes, "Patience", lambda: OnceAtWork(0.5, 3))
    with pytest.raises(RunError, match="in vain for 0, 1"):
        mapped(hang)
    assert no_child_is_left()


def test_what_cannot_be_killed_holds_no_error_back(monkeypatch):
    before = multiprocessing.active_children()
    with monkeypatch.context() as patch:
        patch.setattr(processes, "TURN_SECONDS", 0.01)
        patch.setattr(processes, "Patience", lambda: OnceAtWork(0.5, 3))
        patch.setattr(processes, "kill_children_but", lambda earlier: None)
        with pytest.raises(RunError, match="in vain for 0, 1"):
            mapped(hang)
    assert multiprocessing.active_children()
    processes.kill_children_but(before)
    assert no_child_is_left()


@pytest.mark.parametrize(("is_alive", "codes"), [(True, [1]), (False, [])])
def test_a_script_waits_for_none_that_a_kill_did_not_end(is_alive, codes, monkeypatch, capsys):
    child = mock.create_autospec(multiprocessing.Process, instance=True)
    child.is_alive.return_value = is_alive

    def work():
        processes.kill([child])
        raise RunError("waited in vain")

    left = []
    monkeypatch.setattr(processes, "_killed", [])
    monkeypatch.setattr(processes.os, "_exit", left.append)
    assert run_main("x.py", work) == 1
    assert left == codes and capsys.readouterr().err == "x.py: error: waited in vain\n"
    child.kill.assert_called_once_with()
    child.join.assert_called_once_with(processes.KILL_SECONDS)


@pytest.mark.parametrize("num_started", [0, 1])
def test_without_processes_it_goes_on_in_this_one(num_started, monkeypatch, capsys):
    fork, started = os.fork, []

    def fork_or_fail():
        if len(started) == num_started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(True)
        return fork()

    monkeypatch.setattr(os, "fork", fork_or_fail)
    assert mapped(double) == [2 * item for item in ITEMS]
    assert "no worker processes (Resource temporarily unavailable)" in capsys.readouterr().err
    assert no_child_is_left()


def test_workers_end_with_a_killed_main_process(repository):
    code = (
        "import os, sys, time\n"
        "from system.processes import map_in_processes\n"
        "def hang(item):\n"
        "    os.write(1, f'{os.getpid()}\\n'.encode())  # in one piece, as two workers write\n"
        "    time.sleep(100)\n"
        "map_in_processes(hang, range(8), num_workers=2, title='', crashed=hang)\n"
    )
    main = subprocess.Popen([sys.executable, "-c", code], cwd=repository, stdout=subprocess.PIPE, text=True)
    workers = [int(main.stdout.readline()) for _ in range(2)]
    main.kill()
    assert main.stdout.read() is not None  # to the end: nobody holds the pipe any more
    main.wait()
    assert len(set(workers)) == 2


def test_the_limit_of_open_files_is_raised():
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
        assert room_for_files() < 200
        processes.raise_open_files_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(limits[1], 4096)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
