"""What is kept of an evaluation: clips that are found again, and metrics.json."""

import json
import math

import numpy as np
import pytest

from evaluation.catalogue import METRICS
from evaluation.comparing import COUNT
from evaluation.results import ClipResult, ClipStore, digest_of, measure_sets, summarize, write_json
from system.errors import RunError


def result(name: str, psnr: float, **more) -> ClipResult:
    return ClipResult(name, 24.0, 3, {"psnr": psnr}, floors={"another_video": {"psnr": psnr / 2}}, **more)


def test_a_finished_clip_is_found_again_under_its_digest(tmp_path):
    store, kept = ClipStore(tmp_path), result("a", 20.0, curves={"psnr": [19.0, math.nan, 21.0]})
    kept.features["image_encoder/prediction"] = np.ones((2, 3))
    store.keep(kept, "x")
    found = store.find("a", "x")
    assert found.values == kept.values and math.isnan(found.curves["psnr"][1])
    np.testing.assert_array_equal(found.features["image_encoder/prediction"], np.ones((2, 3)))
    assert store.find("a", "y") is None and store.find("b", "x") is None
    (tmp_path / "clips" / "a.json").write_text("{")
    assert store.find("a", "x") is None


def test_a_disk_that_takes_no_more_ends_the_run(tmp_path):
    (tmp_path / "clips").touch()  # no folder can be made of this name
    with pytest.raises(RunError, match=r"clips: cannot be written \(File exists\); make room"):
        ClipStore(tmp_path).keep(result("a", 20.0), "x")


def test_the_digest_is_of_the_protocol_and_the_files(tmp_path):
    path = tmp_path / "a.mp4"
    digests = [digest_of({"fit": "pad"}, [path]), digest_of({"fit": "crop"}, [path])]
    path.write_bytes(b"1")
    digests.append(digest_of({"fit": "pad"}, [path]))
    assert len(set(digests)) == 3


def test_the_digest_is_of_all_files_of_a_folder(tmp_path):
    (tmp_path / "pose").mkdir()
    (tmp_path / "pose" / "frame_0.json").write_text("[")
    before, time_before = digest_of({}, [tmp_path]), (tmp_path / "pose").stat().st_mtime_ns
    (tmp_path / "pose" / "frame_0.json").write_text("[]")  # in its place: the folders' own times stay
    assert (tmp_path / "pose").stat().st_mtime_ns == time_before
    assert digest_of({}, [tmp_path]) != before


def test_summary_has_intervals_floors_and_reasons(tmp_path):
    results = [result(name, psnr) for name, psnr in zip("abcdef", (20, 21, 22, 23, 24, 25), strict=True)]
    results[0].missing = {"pck": "no pose is found", "ssim": "frames are too small"}
    results[1].values["ssim"] = 0.5
    results[2].missing = {"fid": "needs a network"}
    found = summarize(results, {}, ["psnr", "ssim", "pck", "fid", "cmmd"])
    row = found["metrics"]["psnr"]
    assert row["value"] == 22.5 and 20 < row["low"] < 22.5 < row["high"] < 25
    assert row["unit"] == "dB" and row["higher_is_better"] is True
    assert "1 of 6 clips have a value" in found["metrics"]["ssim"]["protocol"]
    assert found["floors"] == {"another_video": {"psnr": 11.25}}
    assert found["skipped"] == {
        "pck": "no pose is found", "fid": "needs a network", "cmmd": "there is one clip alone",
    }  # fmt: skip
    write_json(tmp_path / "metrics.json", {"protocol": {}, **found})
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["ssim"]["low"] is None


def test_a_seam_ratio_says_at_how_many_borders():
    results = [result(name, 20.0, borders=[12, 24]) for name in "ab"]
    for one in results:
        one.values["seam_ratio"] = 1.1
    results.append(result("c", 20.0))  # one window
    results[0].borders = [12]
    one = summarize(results[:1], {}, [])["metrics"]["seam_ratio"]["protocol"]
    assert one.endswith("; at 1 border") and COUNT.sub("", one) == METRICS["seam_ratio"].protocol
    results[0].borders = [12, 24]
    protocol = summarize(results, {}, [])["metrics"]["seam_ratio"]["protocol"]
    assert protocol.endswith("; 2 of 3 clips have a value; at 4 borders")
    assert COUNT.sub("", protocol) == METRICS["seam_ratio"].protocol


def test_sets_of_features_are_compared_over_all_clips():
    random = np.random.default_rng(0)
    results = []
    for name in "abcd":
        truth = random.normal(size=(4, 8))
        features = {"truth": truth, "prediction": truth, "another_video": truth + 3}
        features = {f"image_encoder/{side}": rows for side, rows in features.items()}
        results.append(result(name, 20.0, features=features))
    found = measure_sets(results)
    assert list(found) == ["cmmd"]
    assert found["cmmd"].value == pytest.approx(0, abs=1e-9)
    assert found["cmmd"].floors["another_video"] > 1
    assert measure_sets(results[:1]) == {}  # one clip alone
