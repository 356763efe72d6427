"""The benchmark of training steps runs the trainer's own parts and says what figures are; no times here."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from benchmarks import train_step
from benchmarks.step import our_step, report
from benchmarks.step.clock import PARTS
from benchmarks.step.sizes import SIZES

SIZE = SIZES["tiny"]


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_heads_are_as_wide_as_real_ones(size):
    assert min(size.unet_channels) // size.num_heads >= 32
    assert size.guidance_channels[-1] // size.num_guidance_heads == 32


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    train_step.write_data(SIZE, folder / "data")
    return folder


def test_steps_from_cached_features_are_the_same_steps(work_dir):
    rows = {}
    for cached in (True, False):
        spec = {"size": "tiny", "stage": "motion", "device": "cpu", "work_dir": work_dir, "warmup_steps": 1,
                "settings": {"cache_latents": True, "cache_features": cached}, "steps": 1,
                "batch_size": SIZE.batch_shape("motion")[0]}  # fmt: skip
        rows[cached] = our_step.measure(spec)
    assert rows[True]["losses"] == pytest.approx(rows[False]["losses"], rel=1e-5)
    assert rows[True]["cpu_seconds"]["reference"] == 0 < rows[False]["cpu_seconds"]["reference"]


@pytest.mark.parametrize("stage", ["joint", "image"])
def test_cached_steps_are_the_same_steps(work_dir, stage):
    rows = {}
    for cached in (True, False):
        spec = {"size": "tiny", "stage": stage, "settings": {"cache_latents": cached}, "device": "cpu",
                "work_dir": work_dir, "warmup_steps": 1, "steps": 1,
                "batch_size": SIZE.batch_shape(stage)[0]}  # fmt: skip
        rows[cached] = our_step.measure(spec)
    assert rows[True]["losses"] == pytest.approx(rows[False]["losses"], rel=1e-5)
    assert len(rows[True]["losses"]) == 2
    assert set(rows[True]["seconds"]) == {*PARTS, "other"}
    assert rows[True]["cpu_seconds"]["vae"] == 0 < rows[False]["cpu_seconds"]["vae"]
    assert all(rows[False]["cpu_seconds"][part] > 0 for part in ("reference", "denoiser", "backward"))


def test_command(tmp_path, monkeypatch):
    """Without the process of its own that each row has: the scaling benchmark's test has one."""

    def run(command, **_):
        spec_path, row_path = map(Path, command[2:])
        row_path.write_text(json.dumps(our_step.measure(json.loads(spec_path.read_text()))))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(train_step, "subprocess", SimpleNamespace(run=run))
    path = tmp_path / "steps.json"
    flags = f"--size tiny --stage image --variants cached --repeats 1 --steps 1 --json {path}"
    assert train_step.main(flags.split()) == 0
    result = json.loads(path.read_text())
    (row,) = result["rows"]
    assert (row["who"], row["variant"], row["stage"], row["repeat"]) == ("ours", "cached", "image", 1)
    assert row["samples_per_second"] > 0 and row["samples_per_cpu_second"] > 0


def test_the_original_gets_the_same_clips(work_dir):
    for stage in ("image", "motion"):
        train_step.write_batch(SIZE, stage, work_dir)
        batch = load_file(work_dir / f"batch_{stage}.safetensors")
        shapes = {name: tuple(tensor.shape) for name, tensor in batch.items()}
        clips, frames = SIZE.batch_shape(stage)
        assert shapes["frames"] == (clips, frames, 3, SIZE.resolution, SIZE.resolution)
        assert shapes["guidance"] == (clips, frames, 12, SIZE.resolution, SIZE.resolution)
        assert shapes["reference_image"] == (clips, 3, SIZE.resolution, SIZE.resolution)


def made_up_row(variant, repeat, samples, memory):
    figures = ("samples_per_second", "samples_per_cpu_second", "samples_per_second_with_data")
    return {"variant": variant, "repeat": repeat, "peak_memory_gb": memory, **dict.fromkeys(figures, samples)}


def test_ratios_are_of_the_same_repeat():
    rows = [
        made_up_row("cached", 1, 4.0, 1.0), made_up_row("original", 1, 2.0, 2.0),
        made_up_row("cached", 2, 8.0, 1.0), made_up_row("original", 2, 2.0, 1.0),
        made_up_row("cached", 3, 6.0, 1.0), {"variant": "original", "repeat": 3, "error": "out of memory"},
    ]  # fmt: skip
    table = report.ratio_table(rows)
    assert table["ours_over_champ_samples_per_second"] == {"median": 3.0, "lowest": 2.0, "highest": 4.0}
    assert table["ours_over_champ_peak_memory"] == {"median": 0.75, "lowest": 0.5, "highest": 1.0}
    assert "cached_over_uncached_samples_per_second" not in table


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--champ_repo .", "go together"),
        ("--champ_repo . --champ_python python", "models/mutual_self_attention.py"),
        ("--json no/such/folder/a.json", "its folder does not exist"),
    ],
)
def test_what_cannot_run_is_one_line(tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    assert train_step.main(["--size", "tiny", "--json", "a.json", *flags.split()]) == 2
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())
