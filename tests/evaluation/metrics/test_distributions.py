"""Distances between sets against direct sums, matrix square roots and cases solved by hand."""

import itertools
import math

import numpy as np
import pytest

from evaluation.metrics import distributions
from evaluation.metrics.distributions import (
    cmmd,
    cmmd_table,
    drift,
    frechet_distance,
    mean_of_pairs,
    polynomial_mmd,
    polynomial_mmd_table,
)


def features(num_rows, width=6, seed=0, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, size=(num_rows, width))


def gaussian(one, other):
    one, other = (value / np.linalg.norm(value) for value in (one, other))
    return math.exp(-((one - other) ** 2).sum() / 200)


def quadratic(one, other):
    return (one @ other / len(one)) ** 2


METRICS = [(cmmd, cmmd_table, gaussian), (polynomial_mmd, polynomial_mmd_table, quadratic)]


@pytest.mark.parametrize(("metric", "table", "kernel"), METRICS)
def test_against_a_double_sum(metric, table, kernel, monkeypatch):
    monkeypatch.setattr(distributions, "_ROWS_AT_ONCE", 4)
    first, second = features(9, seed=1), features(7, seed=2, shift=0.5)
    within = sum(
        np.mean([kernel(one, other) for one, other in itertools.permutations(rows, 2)])
        for rows in (first, second)
    )
    between = np.mean([kernel(one, other) for one in first for other in second])
    assert metric(first, second) == pytest.approx(1000 * (within - 2 * between), rel=1e-9)


@pytest.mark.parametrize(("metric", "table", "kernel"), METRICS)
def test_tables_compare_only_different_clips(metric, table, kernel):
    lengths = (3, 5, 1, 2)
    first = [features(length, seed=clip) for clip, length in enumerate(lengths)]
    second = [features(length, seed=10 + clip, shift=0.5) for clip, length in enumerate(lengths)]
    total = 0.0
    for a, b in itertools.permutations(range(4), 2):
        for sign, one, other in ((1, first, first), (1, second, second), (-2, first, second)):
            total += sign * np.mean([kernel(x, y) for x in one[a] for y in other[b]])
    found = table(first, second)
    assert mean_of_pairs(found) == pytest.approx(1000 * total / 12, rel=1e-9)
    assert np.allclose(found, found.T)
    assert np.abs(table(first, first)).max() < 1e-9  # truth against itself
    assert table([], []).shape == (0, 0) and math.isnan(mean_of_pairs(np.zeros((1, 1))))


def test_few_samples_of_one_distribution_are_0_on_average():
    generator = np.random.default_rng(0)
    values = [cmmd(*generator.normal(size=(2, 8, 16))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(200)
    assert np.mean(values) < 0.1  # counting each row with itself would add 2.5
    assert math.isnan(cmmd(features(1), features(5)))


def test_clips_of_like_frames_do_not_pretend_to_be_many_samples():
    """Eight frames per clip, all alike: as eight samples each they would look far apart."""
    generator = np.random.default_rng(1)
    tables, plain = [], []
    for _ in range(50):
        first, second = (np.repeat(generator.normal(size=(6, 1, 16)), 8, axis=1) for _ in range(2))
        tables.append(mean_of_pairs(cmmd_table(first, second)))
        plain.append(cmmd(first.reshape(-1, 16), second.reshape(-1, 16)))
    assert abs(np.mean(tables)) < 3 * np.std(tables) / math.sqrt(50)
    assert np.mean(plain) > 3 * np.std(plain) / math.sqrt(50)


def test_farther_apart_is_more():
    first, mean = features(64), np.ones(6)
    for metric in (cmmd, polynomial_mmd, frechet_distance):
        values = [metric(first, first[::-1] + shift * mean) for shift in (0, 0.5, 1, 2)]
        assert values == sorted(values) and values[0] == min(values)


def test_frechet_distance_by_hand():
    # One dimension: (difference of means)^2 + (difference of deviations)^2.
    first, second = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0], [9.0]])
    expected = (5 - 1) ** 2 + (first.std(ddof=1) - second.std(ddof=1)) ** 2
    assert frechet_distance(first, second) == pytest.approx(expected)
    assert frechet_distance(second, second) == pytest.approx(0, abs=1e-9)
    assert math.isnan(frechet_distance(first[:1], second))


@pytest.mark.parametrize(("num_first", "num_second"), [(40, 30), (4, 5), (40, 4)])
def test_frechet_distance_with_a_matrix_square_root(num_first, num_second):
    linalg = pytest.importorskip("scipy.linalg", reason="scipy computes the matrix square root")
    first, second = features(num_first, seed=3), features(num_second, seed=4, shift=1)
    covariances = [np.cov(one, rowvar=False) for one in (first, second)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    difference = first.mean(axis=0) - second.mean(axis=0)
    expected = difference @ difference + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)


def test_drift_of_a_turning_feature():
    seconds = np.arange(101) / 10
    angles = 0.2 * seconds
    found = drift(np.stack([np.cos(angles), np.sin(angles)], axis=1), seconds)
    assert found.lags[0] == pytest.approx(0.1) and found.lags[-1] == pytest.approx(5)
    assert found.cosine == pytest.approx(np.cos(0.2 * found.lags))
    assert found.fall == pytest.approx(math.cos(0.02) - math.cos(1))


def test_drift_goes_by_time():
    generator = np.random.default_rng(5)
    seconds = np.sort(generator.choice(200, 150, replace=False)) / 25  # frames are missing
    angles = 0.5 * seconds
    lags, cosine = drift(np.stack([np.cos(angles), np.sin(angles)], axis=1), seconds)
    assert cosine == pytest.approx(np.cos(0.5 * lags), abs=0.02)


def test_drift_of_little():
    lags, cosine = drift(np.ones((5, 3)), np.arange(5))
    assert cosine == pytest.approx(np.ones(len(lags))) and len(lags) == 2
    assert len(drift(np.ones((1, 3)), [0.0]).lags) == 0 and math.isnan(drift(np.ones((1, 3)), [0.0]).fall)
    assert len(drift(np.eye(4), np.arange(4)).lags) < 2 and math.isnan(drift(np.eye(4), np.arange(4)).fall)
