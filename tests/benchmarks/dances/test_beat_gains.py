"""The table of gains, on a data folder of one dancer who stops on the beat."""

import json
import sys

import numpy as np

from benchmarks.dances import beat_gains


def test_a_dancer_on_the_beat_has_a_gain_in_the_table(tmp_path, monkeypatch, capsys):
    seconds, beats = np.arange(480) / 20, np.arange(0.25, 24, 0.5)
    points = np.ones((480, 18, 3), np.float32)
    points[..., :2] = 0.5 + 0.2 * np.cos(2 * np.pi * (seconds - 0.25))[:, None, None]  # still at each beat
    for folder in ("poses", "metadata"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "poses" / "disco_1.npy", points)
    facts = {"beat_seconds": beats.tolist(), "frame_rate": 20, "size": [512, 256]}
    (tmp_path / "metadata" / "disco_1.json").write_text(json.dumps(facts))
    argv = ["beat_gains.py", "--data_dir", str(tmp_path), "--num_key_points", "18", "--kind", "([a-z]*)_"]
    monkeypatch.setattr(sys, "argv", argv)
    beat_gains.main()
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[:2] == ["| disco, 20", "1, 0.4"] and row[-1].endswith("2 clips |")
    assert float(row[2]) > 0.9 and float(row[4]) > 0.5
