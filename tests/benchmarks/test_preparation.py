"""Each stage has its own time alone; poses are compared in shares of the frame's height."""

import numpy as np
import pytest

from benchmarks import preparation
from benchmarks.preparation import Stages, compare_poses
from datasets import write_video


def test_a_stage_inside_another_counts_for_itself(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(preparation.time, "process_time", lambda: next(clock))
    stages = Stages()
    inner = stages.timed("pose", lambda: 7)
    steps = stages.timed("decoding", lambda: iter([1, 2]))
    with stages.stage("writing"):
        assert inner() == 7 and list(steps()) == [1, 2]
    stages.switch()
    assert stages.seconds["pose"] == 1 and stages.seconds["decoding"] == 4  # to make, two steps, the end
    assert sum(stages.seconds.values()) == next(clock) - 1


def test_distances_are_shares_of_the_frames_height(tmp_path):
    points = np.full((4, 134, 3), 0.5, np.float32)
    for name, shift in (("one", 0), ("other", 0.01)):
        write_video(tmp_path / name / "videos" / "a.mp4", np.zeros((4, 64, 32, 3), np.uint8), 8)
        (tmp_path / name / "poses").mkdir()
        moved = points.copy()
        moved[0, :67, 0] += shift  # of the width, half the height
        moved[3, 0, 2] -= shift  # no longer sure
        np.save(tmp_path / name / "poses" / "a.npy", moved)
    found = compare_poses(tmp_path / "one", tmp_path / "other")
    assert (found["points"], found["lost"], found["gained"]) == (4 * 134 - 1, 1, 0)
    assert found["identical"] == found["within_0.2_percent"] == pytest.approx(1 - 67 / 535)
    assert found["p99"] == pytest.approx(0.005, rel=1e-3)
