"""The sampling benchmark: the same forwards on every side, figures that say what they are; no times here."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import sampling, train_step
from benchmarks.sample import our_sample, quality, seams
from benchmarks.sample.plain import PlainSampler, champ_windows
from benchmarks.sample.report import add_figures
from benchmarks.sample.settings import setting
from benchmarks.step.sizes import SIZES
from pipelines.context_windows import context_windows


def test_command_counts_forwards(tmp_path, monkeypatch):
    """Without the process of its own that each row has."""
    specs = []

    def run(command, env, **_):
        spec_path, row_path = map(Path, command[2:])
        specs.append(json.loads(spec_path.read_text()))
        row_path.write_text(json.dumps(our_sample.measure(specs[-1])))
        assert env["OMP_NUM_THREADS"] == "1"
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(train_step, "subprocess", SimpleNamespace(run=run))
    path = tmp_path / "speed.json"
    flags = "speed --size tiny --frames 3 --steps 1 --context_frames 2 --context_overlap 1 --repeats 1"
    assert sampling.main([*flags.split(), "--json", str(path)]) == 0
    result = json.loads(path.read_text())
    ours, bare = result["rows"]
    assert [row["variant"] for row in (ours, bare)] == ["ours", "bare"]
    assert ours["forwards"] == bare["forwards"] == 2 * 2  # windows, halves
    assert ours["frames_denoised"] == bare["frames_denoised"] == 2 * 2 * 2
    assert set(result["ratios"]["tiny, 3 frames"]) == {"ours_over_bare_cpu_seconds"}


def test_the_plain_sampler_samples_as_the_pipeline_where_there_is_one_window():
    pipeline = our_sample.make_pipeline(SIZES["tiny"], torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    reference = torch.rand(3, 128, 128, generator=generator) * 2 - 1
    guidance = {"depth": torch.rand(2, 3, 128, 128, generator=generator)}
    noise = torch.randn(1, 2, 4, 16, 16, generator=generator)
    expected = pipeline(
        reference, guidance, num_inference_steps=1, latents=noise, output_type="pt", guidance_scale=3.5
    )
    plain = PlainSampler(pipeline.model, pipeline.frozen)
    encoded = plain.encode(reference, guidance)
    pipeline.scheduler.set_timesteps(1)
    frames = plain.sample_as_champ(encoded, noise, pipeline.scheduler, champ_windows(2, 24, 4), 3.5)
    torch.testing.assert_close(frames / 2 + 0.5, expected.frames[0], atol=1e-5, rtol=0)


def test_the_originals_last_window_wraps():
    windows = champ_windows(64, 24, 4)
    assert [int(window[0]) for window in windows] == [0, 20, 40, 60] and len(context_windows(64, 24, 4)) == 3
    assert windows[-1].tolist() == [*range(60, 64), *range(20)]


def test_settings_are_words():
    found = setting("unipc:8:interval=0.3,5:grids=2:noise=shared")
    assert found.scheduler == "unipc" and found.keywords == {
        "num_inference_steps": 8, "guidance_scale": 3.5, "guidance_interval": (0.3, 5.0), "window_grids": 2,
        "shared_noise": True,
    }  # fmt: skip
    assert setting("ddim:25:scale=2").keywords == {"num_inference_steps": 25, "guidance_scale": 2.0}


@pytest.mark.parametrize(
    "word", ["ddim", "dbim:8", "ddim:x", "ddim:8:interval=3", "ddim:8:grid=2", "ddim:8:noise=no"]
)
def test_a_wrong_setting_is_told(word):
    with pytest.raises(argparse.ArgumentTypeError, match="SCHEDULER:STEPS"):
        setting(word)


def test_a_full_sample_has_more_steps():
    row = {
        "variant": "original", "num_inference_steps": 2, "step_cpu_seconds": 5.0, "peak_memory_gb": 1.0,
        "packages_gb": 0.25, "cpu_seconds": {"denoiser": 4.0},
    }  # fmt: skip
    assert add_figures(row, 20)["full_cpu_seconds"] == 5 + 18 * 2
    assert add_figures(row | {"variant": "recommended"}, 20)["full_cpu_seconds"] == 5
    assert add_figures(row, 20)["held_gb"] == 0.75


def test_a_setting_is_not_worse_where_a_loss_is_excluded():
    def rows(loss):
        shifts = np.linspace(-0.05, 0.05, 24)
        return [
            {"psnr": 20 - loss + shift, "psnr_of_frames": 20, "overlap": 0.7, "forwards": 4, "cpu_seconds": 1}
            for shift in shifts
        ]

    assert quality.summary(rows(0.2), rows(0))["is_not_worse"]
    worse = quality.summary(rows(0.31), rows(0))
    assert not worse["is_not_worse"] and worse["differences"]["psnr"]["mean"] == pytest.approx(-0.31)
    table = quality.table_lines({"settings": {"ddim:4": worse}})
    assert "| 19.690 | -0.310 (-0.310 to -0.310) |" in table[-1] and table[-1].endswith("| no |")


def test_seams_are_told_from_beats():
    """Beats at the windows' borders, in the truth too, and jumps there that the truth does not have."""
    windows = [torch.arange(24)[window] for window in context_windows(24, 6, 0)]
    moving = 4 * np.arange(24) + 20 * (np.arange(24) // 6)
    truth = np.broadcast_to(moving[:, None, None, None], (24, 8, 8, 3)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 3, truth.shape, np.uint8)
    jumps = np.where(np.arange(24) // 6 % 2, 30, 0).astype(np.uint8)[:, None, None, None]
    unseamed, seamed = (
        seams.seam_figures(frames, truth, windows) for frames in (truth + noise, truth + noise + jumps)
    )
    assert unseamed["seam_ratio"] > 3 and unseamed["of_truth"] > 3
    assert (
        unseamed["against_truth"]
        == pytest.approx(1, abs=0.1)
        == pytest.approx(unseamed["of_errors"], abs=0.1)
    )
    assert seamed["against_truth"] > 1.5 and seamed["of_errors"] > 3
