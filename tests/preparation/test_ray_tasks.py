"""The same files as one process makes, by two machines of which one is lost; what always fails is named."""

import importlib.util
import threading
import time

import pytest

import prepare_guidance
from preparation import ray_tasks
from preparation.ray_tasks import run_on_ray
from preparation.settings import Settings
from preparation.sources import list_sources
from preparation.workers import Done, Progress, prepare_one

HAS_RAY = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="pip install -r requirements-ray.txt")
NUM_VIDEOS = 5

# Leaves a note on the machine that it runs on, and waits there until a machine is lost.
ESTIMATOR = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from marker_pose import find_markers, level

NOTES = Path({notes!r})

def find(frame):
    if frame[0, 0, 2] > 150:
        os._exit(3)
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        (NOTES / sys.modules["ray"].get_runtime_context().get_node_id()).touch()
        end = time.monotonic() + 60
        while not (NOTES / "lost").exists() and time.monotonic() < end:
            time.sleep(0.05)
    return find_markers(frame)
"""


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_the_flag_says_what_to_install(tmp_path, capsys):
    folders = ["--input_dir", str(tmp_path), "--output_dir", str(tmp_path / "data")]
    assert prepare_guidance.main([*folders, "--executor", "ray"]) == 2
    assert "pip install -r requirements-ray.txt" in capsys.readouterr().err


@pytest.fixture
def two_machines(monkeypatch):
    """Yield (cluster, the machine that can be lost)."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


def files_below(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@needs_ray
def test_a_machine_is_lost_and_the_folder_is_the_same(tmp_path, write_raw, draw, marker_module, two_machines):
    pytest.importorskip("librosa", reason="pip install -r requirements-prepare.txt")
    cluster, second = two_machines
    (tmp_path / "notes").mkdir()
    names = {"tests": str(marker_module.parent), "notes": str(tmp_path / "notes")}
    (tmp_path / "mine.py").write_text(ESTIMATOR.format(**names))
    for number in range(NUM_VIDEOS):
        write_raw(tmp_path / "raw" / f"dance_{number}.mp4", 16 + number)
    blue = [draw((96, 64), [(0.3, 0.3, 0.3)], background=(20, 20, 230))] * 16
    write_raw(tmp_path / "raw" / "bad.mp4", frames=blue)
    sources, _ = list_sources(tmp_path / "raw", None)
    mine = str(tmp_path / "mine.py")
    settings = Settings(pose_estimator=f"{mine}:find", music_features=f"{mine}:level")
    for source in sources:
        if source.name != "bad":
            assert prepare_one(source, settings, tmp_path / "one", lambda frames: None).fault is None

    def lose_the_second():
        while not (tmp_path / "notes" / second.node_id).exists():
            time.sleep(0.05)
        cluster.remove_node(second, allow_graceful=False)
        (tmp_path / "notes" / "lost").touch()

    thread = threading.Thread(target=lose_the_second)
    thread.start()
    data = tmp_path / "data"
    lock = prepare_guidance.open_output_dir(data)
    events = list(run_on_ray(sources, settings, data, address=cluster.address))
    prepare_guidance.close_output_dir(data, lock)
    thread.join()
    done = {event.source.name: event for event in events if isinstance(event, Done)}
    assert sorted(done) == sorted(source.name for source in sources)
    assert [name for name, event in done.items() if event.fault] == ["bad"]
    assert "the process that prepared it ended 3 times (WorkerCrashedError)" in str(done["bad"].fault)
    assert files_below(data) == files_below(tmp_path / "one")
    assert all(isinstance(event, Done | Progress) for event in events)


@needs_ray
def test_no_cluster_at_the_address(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_tasks, "TURN_SECONDS", 0.1)
    source = type("Source", (), {})()
    with pytest.raises(ray_tasks.ConfigError, match="--ray_address 127.0.0.1:1: no Ray cluster"):
        list(run_on_ray([source], Settings(), tmp_path, address="127.0.0.1:1"))
