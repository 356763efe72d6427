"""Intervals against those of the normal law, and what may be said of two results."""

import math

import numpy as np
import pytest
import torch

from evaluation.confidence import Difference, bootstrap_interval, bootstrap_pairs, paired_difference

STUDENT = {5: 2.776445, 24: 2.068658, 400: 1.965927}  # 97.5 % quantile with N - 1 degrees


@pytest.mark.parametrize("num_clips", STUDENT)
def test_a_normal_sample_has_students_interval(num_clips):
    # Normal quantiles instead of draws: the sample is normal beyond doubt.
    places = (np.arange(num_clips) + 0.5) / num_clips
    values = 20 + 2 * np.sqrt(2) * np.array([inverse_erf(2 * place - 1) for place in places])
    low, high = bootstrap_interval(values)
    half = STUDENT[num_clips] * values.std(ddof=1) / math.sqrt(num_clips)
    assert (low + high) / 2 == pytest.approx(20, abs=0.1 * half)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)


def inverse_erf(value):
    return torch.erfinv(torch.tensor(value, dtype=torch.float64)).item()


def test_an_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    samples = generator.normal(size=(400, 10))
    intervals = [bootstrap_interval(sample, num_resamples=1000) for sample in samples]
    assert 0.92 <= np.mean([low <= 0 <= high for low, high in intervals]) <= 0.98


def test_an_interval_depends_on_neither_order_nor_missing_values():
    values = np.random.default_rng(1).normal(size=9)
    expected = bootstrap_interval(values)
    assert bootstrap_interval([math.nan, *values[::-1]]) == expected
    assert bootstrap_interval(values, seed=1) != expected
    narrower = bootstrap_interval(values, level=0.5)
    assert expected[0] < narrower[0] < narrower[1] < expected[1]


@pytest.mark.parametrize("values", [[], [3.0], [math.nan, 3.0]])
def test_one_clip_has_no_interval(values):
    assert all(math.isnan(end) for end in bootstrap_interval(values))
    assert bootstrap_interval([2.0, 2.0, 2.0]) == (2, 2)


def test_pairs_of_clips_vary_as_their_clips_do():
    # A table of sums: its mean over pairs is twice the mean of the clips, and so are both ends.
    values = np.random.default_rng(2).normal(size=40)
    low, high = bootstrap_pairs(values[:, None] + values)
    assert (low, high) == pytest.approx(tuple(2 * np.array(bootstrap_interval(values))), abs=0.1)
    assert math.isnan(bootstrap_pairs(np.zeros((2, 2)))[0])


def test_a_paired_difference_takes_out_what_is_hard_in_a_clip():
    generator = np.random.default_rng(3)
    hard = generator.normal(20, 5, size=24)
    better, worse = hard + 1.2 + generator.normal(0, 0.5, size=24), hard
    found = paired_difference(better, worse)
    assert found.mean == pytest.approx((better - worse).mean())
    assert 0 < found.low < found.mean < found.high < found.low + 1
    assert paired_difference(worse, better).mean == pytest.approx(-found.mean)
    assert paired_difference([1, math.nan, 3], [1, 2, math.nan]).num_clips == 1


def test_sentences():
    clear = Difference(1.2, 0.8, 1.6, 24)
    assert clear.sentence("psnr", "dB", True) == "psnr: better by 1.2 dB, 95 % 0.8 to 1.6 (24 clips)"
    assert clear.sentence("l1", "", False) == "l1: worse by 1.2, 95 % 0.8 to 1.6 (24 clips)"
    assert clear.sentence("seam_ratio", "", None).startswith("seam_ratio: higher by 1.2,")
    reverse = Difference(-0.021, -0.034, -0.009, 8, level=0.9)
    assert reverse.sentence("lpips", "", False) == "lpips: better by 0.02, 90 % 0.01 to 0.03 (8 clips)"
    assert reverse.sentence("ssim", "", True) == "ssim: worse by 0.02, 90 % 0.01 to 0.03 (8 clips)"


def test_sentences_that_claim_nothing():
    unsure = Difference(0.31, -0.24, 0.81, 24)
    assert unsure.sentence("psnr", "dB", True) == (
        "psnr: 24 clips cannot tell them apart (0.3 dB, 95 % -0.2 to 0.8)"
    )
    few = Difference(1.2, 0.8, 1.6, 5)
    assert few.sentence("psnr", "dB", True).startswith("psnr: 5 clips cannot tell them apart (difference 1.2")
    one = paired_difference([3.0], [1.0])
    assert one.sentence("psnr", "dB", True) == "psnr: 1 clip cannot tell them apart (difference 2.0 dB)"
    assert paired_difference([], []).sentence("psnr") == "psnr: no clip has a value in both"
    assert paired_difference([1.0] * 7, [1.0] * 7).sentence("psnr") == "psnr: the same in all 7 clips"


def test_one_difference_in_all_clips_has_few_digits():
    first = [0.3 + 0.1 * place for place in range(7)]  # 0.3 apart but for rounding
    found = paired_difference(first, [0.1 * place for place in range(7)])
    assert found.sentence("psnr", "dB", True) == "psnr: better by 0.30 dB, 95 % 0.30 to 0.30 (7 clips)"


def test_an_end_beside_zero_does_not_read_as_zero():
    assert "95 % 0.04 to 0.64" in Difference(0.3, 0.04, 0.64, 24).sentence("psnr", "dB", True)
