"""The scaling benchmark changes one thing at a time; what fits follows from two simulated steps."""

from types import SimpleNamespace

import pytest

from benchmarks import what_fits
from benchmarks.step import scaling, scaling_report
from benchmarks.step.sizes import SIZES
from benchmarks.train_step import write_data


def asked_for(**changes):
    defaults = {"size": "tiny", "stage": "motion", "series": list(scaling.SERIES), "device": "cpu",
                "steps": 1}  # fmt: skip
    return SimpleNamespace(**defaults | changes)


def test_a_point_is_trained_and_simulated(tmp_path):
    write_data(SIZES["tiny"], tmp_path / "data")
    base, *points = scaling.list_points(asked_for(series=["batch_size"]))
    assert [point["batch_size"] for point in points] == [2, 4]
    row = scaling.run_point(points[0], asked_for(), tmp_path)
    assert "error" not in row and len(row["losses"]) == 2
    assert row["samples_per_second"] == pytest.approx(2 / row["step_seconds"])
    assert 0 < row["simulated_gb"] < row["held_gb"]
    assert len(scaling_report.table_lines({"rows": [row, {"error": "out of memory"}]})) == 3


def test_series_change_one_thing():
    points = scaling.list_points(asked_for(size="small"))
    for name, values in scaling.SERIES.items():
        series = [point[name] for point in scaling_report.series_rows(points, name)]
        assert series == [value for value in values if name != "processes" or value in series]
    assert len(points) == len({tuple(point.values()) for point in points})
    images = scaling.list_points(asked_for(stage="image"))
    assert {point["num_frames"] for point in images} == {1}


def test_what_fits_lies_between_two_simulated_steps(monkeypatch):
    gib = what_fits.GIB
    few, many = (8, 10 * gib), (32, 34 * gib)  # one GiB per frame
    assert what_fits.most_that_fits(10, few, many) == 0
    assert what_fits.most_that_fits(24, few, many) == 18  # (24 - 1) / 1.1 = 20.9
    assert what_fits.most_that_fits(80, few, many) == 32

    def simulate(size, stage, resolution, count, settings):
        asked.append(settings)
        return SimpleNamespace(total=count * gib, weights=gib, optimizer=gib, phase="backward")

    asked = []
    monkeypatch.setattr(what_fits, "simulate", simulate)
    keywords = {"size": "sd15", "stage": ["image"], "resolution": [512], "json": None}
    levels = {"gradient_checkpointing": what_fits.LEVELS, "lora_parts": [], "cache_features": False}
    rows = what_fits.measure(SimpleNamespace(**keywords, **levels, lora_rank=None))
    table = "\n".join(what_fits.table_lines(rows))
    assert [row["gradient_checkpointing"] for row in rows] == list(what_fits.LEVELS)
    assert "| 512 | 6 | 10 | 13 | 16+ | 16+ | 16+ |" in table
    assert asked[0] == {"gradient_checkpointing": "none"}
    assert what_fits.measure(SimpleNamespace(**keywords, **levels, lora_rank=4))[0]["lora_rank"] == 4
    assert asked[-1] == {"gradient_checkpointing": "all", "lora_rank": 4, "lora_parts": []}
