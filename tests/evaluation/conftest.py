"""Evaluation folders made up of numbers, without a model or a metric."""

import json
import math

import numpy as np
import pytest

from evaluation.confidence import bootstrap_interval

ROWS = {  # {metric: (unit, higher_is_better)}
    "psnr": ("dB", True), "l1": ("levels", False), "seam_ratio": ("", None),
}  # fmt: skip


def metric_rows(samples: dict) -> dict:
    """Return "metrics" of metrics.json for {clip: {metric: value}}."""
    rows = {}
    for name in dict.fromkeys(name for values in samples.values() for name in values):
        values = [values.get(name, math.nan) for values in samples.values()]
        low, high = (None if math.isnan(end) else end for end in bootstrap_interval(values))
        unit, higher = ROWS[name]
        row = {"value": float(np.nanmean(values)), "low": low, "high": high, "unit": unit}
        rows[name] = row | {"higher_is_better": higher, "protocol": f"how {name} is computed"}
    return rows


@pytest.fixture
def write_evaluation(tmp_path):
    """write_evaluation(name, samples, **other parts of metrics.json): the folder; clips have curves too."""

    def write(name, samples, num_frames=12, **parts):
        folder = tmp_path / name
        (folder / "clips").mkdir(parents=True)
        content = {"protocol": {"version": 1}, "metrics": metric_rows(samples), "samples": samples, **parts}
        (folder / "metrics.json").write_text(json.dumps(content), encoding="utf-8")
        for clip, values in samples.items():
            curve = [20.0 + frame for frame in range(num_frames)]
            curve[5] = 3.25
            kept = {
                "frame_rate": 12.0, "num_frames": num_frames, "values": values, "borders": [0, 6],
                "beats": [0.5],
                "curves": {"psnr": curve, "frame_jumps": [None] * 3 + [1.0] * (num_frames - 4)},
            }  # fmt: skip
            (folder / "clips" / f"{clip}.json").write_text(json.dumps(kept), encoding="utf-8")
        return folder

    return write
