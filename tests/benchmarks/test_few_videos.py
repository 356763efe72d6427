"""The benchmark of few videos: one dancer in all of them, honest tables, nothing made twice; no training."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.few_videos import compare, report
from benchmarks.few_videos.data import DANCER_SEED, scene_of, with_prior
from demo.data import FIRST_SEEDS, FOLDERS, DemoScene


def test_one_dancer_dances_to_many_songs():
    first, second = scene_of("dancer_00"), scene_of("dancer_06")
    assert np.array_equal(first.reference_image(), second.reference_image())
    assert first.song != second.song
    assert all(DANCER_SEED - start >= 400_000 for start in FIRST_SEEDS.values())
    assert np.array_equal(DemoScene(4, dancer_seed=4).key_points(), DemoScene(4).key_points())


def test_half_of_the_samples_with_a_prior_are_the_dancers(tmp_path):
    for root, name in ((tmp_path / "train", "dancer_{:02}"), (tmp_path / "demo", "train_{:05}")):
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True)
            for number in range(3):
                (root / folder / f"{name.format(number)}.mp4").write_text(f"{folder} {number}")
    for _ in range(2):  # what is there stays
        mixed = with_prior(tmp_path, tmp_path / "demo", num_prior=3)
    names = [path.stem for path in sorted((mixed / "videos").iterdir())]
    assert names == [*(f"dancer_{n:02}_copy0" for n in range(3)), *(f"train_{n:05}" for n in range(3))]
    assert (mixed / "poses" / "dancer_01_copy0.mp4").read_text() == "poses 1"


def result(psnr, loss):
    values = {metric: {f"clip_{n}": psnr + n for n in range(6)} for metric in report.METRICS}
    losses = {f"clip_{n}": [loss, 4 * loss] for n in range(6)}
    return {
        "curves": {"held_out_clips": {"25": loss}}, "bytes": 2_000_000,
        "figures": dict.fromkeys(report.GROUPS, values), "losses": dict.fromkeys(report.GROUPS, losses),
    }  # fmt: skip


def test_a_table_has_means_over_seeds_and_differences_from_the_start():
    results = {"none": result(20.0, 0.1), "full_1": result(21.0, 0.05), "full_2": result(23.0, 0.05)}
    lines = report.lines(results)
    assert "| none | the dancer, other songs | 22.5 |" in lines[2]
    assert "| full | the dancer, other songs | 24.5 (+2.0, +2.0 to +2.0) |" in lines[3]
    assert lines[3].endswith("| 3.0 (3.0 to 3.0) | 2.00 |")
    assert "full, dancer: psnr of each seed 23.50 25.50" in lines
    assert lines[-1] == "full_2, held_out_clips: 25: 50.0"


def test_a_run_is_made_once_and_a_long_one_goes_on(tmp_path, monkeypatch):
    made = compare.Comparison(tmp_path, tmp_path / "demo_output", tmp_path / "demo_data", 2)
    trained = []

    def train(flags):
        given = dict(zip(flags[:-1], flags[1:], strict=True))
        out = compare.Path(given["--output_dir"])
        trained.append((out.name, given["--max_train_steps"], [path.name for path in out.glob("check*")]))
        (out / f"checkpoint-{given['--max_train_steps']}").mkdir()

    monkeypatch.setattr(compare.train_guidance, "main", train)
    monkeypatch.setattr(compare.figures, "curves_of", lambda logs: {"held_out_clips": {logs.name: 0.5}})
    case = replace(compare.cases()["full_long"], has_figures=False)
    for _ in range(2):
        found = made.make("full_long", case)
    assert trained == [("full_1", "100", []), ("full_long", "300", ["checkpoint-100"])]
    assert found["curves"] == {"held_out_clips": {"full_1": 0.5, "full_long": 0.5}}
    monkeypatch.setattr(compare.train_guidance, "main", lambda flags: 2)
    with pytest.raises(SystemExit):
        made.make("full_2", compare.cases()["full_2"])
