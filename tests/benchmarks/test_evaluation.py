"""The benchmark of the evaluation measures every metric on every frame; no times here."""

import numpy as np

from benchmarks import evaluation


def test_all_metrics_have_a_value_of_every_frame():
    found = evaluation.measure(seconds=1.1, size=48)  # 33 frames: the last chunk has one
    assert found["frames"] == 33 and 0 < found["first_mib"] <= found["last_mib"]
    assert {"ssim", "hand_psnr", "dtssd", "background_flicker"} < set(found["metrics"])
    assert all(np.isfinite(row["value"]) for row in found["metrics"].values())
    chunks = list(evaluation.paint(33, 48))
    whole = tuple(np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
    for name, work in evaluation.works_of(whole, 0).items():
        assert np.isclose(found["metrics"][name]["value"], work().mean(), rtol=1e-12), name
