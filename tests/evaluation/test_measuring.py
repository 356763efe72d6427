"""One clip to numbers: every metric that has what it needs, and a reason for the others."""

import shutil

import numpy as np
import pytest

from datasets import VideoReader, write_video
from evaluation.catalogue import METRICS
from evaluation.clips import pairs
from evaluation.clips.pairs import paired
from evaluation.clips.sources import array_source, video_source
from evaluation.clips.truth import ClipSettings, TruthFolder
from evaluation.measuring import OF_RUNS, Tools, beats_of, embedded_frames, measure, window_starts
from evaluation.metrics import pixels
from system.errors import UserError

CHANNELS = {"music": 35, "pose": 134}
PIXELS = ["psnr", "ssim", "l1", "psnr_legacy", "ssim_legacy", "l1_legacy", "hand_psnr", "face_psnr", "dtssd"]
POSES, BEATS = ["pck", "akd", "oks"], ["beat_alignment_gain", "beat_shifts_beaten", "beat_coverage"]


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_data):
    return write_data(tmp_path_factory.mktemp("data"), num_videos=2, num_frames=20)


def truth_of(data):
    return TruthFolder(data, CHANNELS, ClipSettings()).clip("dance_001")


@pytest.fixture
def truth(data):
    return truth_of(data)


@pytest.fixture(scope="module")
def frames(data):
    return np.stack(list(truth_of(data).source()()))


def judge(truth):
    """An estimator that sees the driving pose, a little to the right."""
    points = np.concatenate([truth.guidance["pose"].numpy()])
    return lambda source, frame_rate: points + np.array([0.01, 0, 0], np.float32)


def changed(truth, frames, **tools):
    return measure(paired(truth, array_source(frames), borders=[8, 16]), Tools(**tools), list(METRICS))


def test_truth_against_itself_is_the_best(truth, frames):
    found = changed(truth, frames, pose_estimator=lambda source, rate: truth.guidance["pose"].numpy())
    values = found.values
    assert [values[name] for name in ("psnr", "ssim", "l1", "dtssd", "hand_psnr", "face_psnr")] == [
        100, pytest.approx(1), 0, 0, 100, 100
    ]  # fmt: skip
    assert values["pck"] == 1 and values["oks"] == pytest.approx(1) and values["akd"] == 0


def test_curves_are_those_of_the_whole_clip_at_once(truth, frames, monkeypatch):
    noisy = np.clip(frames + np.random.default_rng(0).normal(0, 9, frames.shape), 0, 255).astype(np.uint8)
    whole = changed(truth, noisy)
    monkeypatch.setattr(pairs, "MOST_CHUNK_FRAMES", 3)
    parts = changed(truth, noisy)
    assert set(PIXELS) <= set(whole.curves)
    for name, curve in whole.curves.items():
        np.testing.assert_allclose(parts.curves[name], curve, err_msg=name)
        assert len(curve) == 20 - (name in ("dtssd", "frame_jumps", "background_flicker"))


def test_one_wrong_frame_is_found_in_the_curve(truth, frames):
    wrong = frames.copy()
    wrong[13] = 255 - wrong[13]
    found = changed(truth, wrong)
    assert np.argmin(found.curves["psnr"]) == 13 and np.argmax(found.curves["l1"]) == 13


def test_what_fails_in_a_later_chunk_has_a_reason_and_no_part_of_a_curve(truth, frames, monkeypatch):
    monkeypatch.setattr(pairs, "MOST_CHUNK_FRAMES", 8)
    left = iter(["one chunk"])

    def fail_later(prediction, truth):
        if next(left, None) is None:
            raise UserError("too much")
        return np.zeros(len(prediction))

    monkeypatch.setattr(pixels, "l1", fail_later)
    found = changed(truth, frames)
    assert found.missing["l1"] == "too much"
    assert "l1" not in found.values and "l1" not in found.curves and len(found.curves["psnr"]) == 20


def test_pose_and_beats_are_those_of_the_estimator(truth, frames):
    truth.metadata["beat_seconds"] = [0.5, 1.0, 1.5]
    found = changed(truth, frames, pose_estimator=judge(truth))
    assert found.values["akd"] == pytest.approx(0.64, abs=1e-3)  # pixels
    assert found.beats.tolist() == [0.5, 1.0, 1.5]
    assert found.points.shape == (20, 134, 3)
    assert set(BEATS) & (set(found.values) | set(found.missing)) == set(BEATS)


def test_what_is_missing_has_a_reason(data, frames):
    bare = TruthFolder(data, {}, ClipSettings()).clip("dance_001")
    found = measure(paired(bare, array_source(frames)), Tools(), list(METRICS))
    assert set(found.values) | set(found.missing) | set(OF_RUNS) == set(METRICS)
    assert "--guidance_types pose" in found.missing["hand_psnr"]
    assert "--context_frames" in found.missing["seam_ratio"]
    assert "--pose_estimator" in found.missing["beat_alignment_gain"]
    assert "--model_path" in found.missing["guidance_gap"]
    tools = Tools(lacks={"pose_estimator": "not installed"})
    found = measure(paired(truth_of(data), array_source(frames)), tools, ["pck"])
    assert found.missing == {"pck": "not installed"}


@pytest.mark.parametrize(
    ("stride", "num_rows", "rows_per_second"), [(1, 20, None), (3, 20, None), (1, 10, 4)]
)
def test_each_marked_beat_counts_once_however_frames_and_rows_lie(
    stride, num_rows, rows_per_second, tmp_path, write_data
):
    root = write_data(tmp_path, num_videos=1, num_frames=20)
    shutil.rmtree(root / "music_features" / "dance_001")
    rows = np.zeros((num_rows, 35), np.float32)
    rows[[2, 7], -1] = 1
    np.save(root / "music_features" / "dance_001.npy", rows)
    settings = ClipSettings(frame_stride=stride, music_feature_fps=rows_per_second)
    truth = TruthFolder(root, CHANNELS, settings).clip("dance_001")
    beats = beats_of(paired(truth, truth.source(), np.arange(0, len(truth.frames), 2)), Tools())
    assert beats.tolist() == pytest.approx([2 / (rows_per_second or 8), 7 / (rows_per_second or 8)])


def test_unknown_beats_name_the_video(data, frames, truth):
    found = measure(
        paired(TruthFolder(data, {"pose": 134}, ClipSettings()).clip("dance_001"), array_source(frames)),
        Tools(pose_estimator=judge(truth)), BEATS,
    )  # fmt: skip
    assert "dance_001.mp4: the beats of the music are not known" in found.missing["beat_coverage"]


def test_networks_see_some_frames_and_windows_of_both_sides(truth, frames):
    shown = []

    def network(images):
        shown.append(images.shape)
        return images.reshape(len(images), -1)[:, :3].astype(np.float64)

    tools = Tools(networks={"image_encoder": network, "i3d": network})
    found = measure(paired(truth, array_source(frames)), tools, ["cmmd", "drift", "fvd"])
    sides = [found.features[f"image_encoder/{side}"].shape for side in ("prediction", "truth")]
    assert sides == [(16, 3), (16, 3)]
    assert found.features["i3d/prediction"].shape == (1, 3) and (1, 16, 64, 64, 3) in shown
    assert "drift" in found.values
    # Of a floor, which has the same truth, the prediction alone is embedded.
    num_shown = len(shown)
    of_truth = {key: rows for key, rows in found.features.items() if key.endswith("/truth")}
    again = measure(paired(truth, array_source(frames)), tools, ["cmmd", "drift", "fvd"], known=of_truth)
    assert len(shown) == num_shown * 3 // 2
    assert {key: rows.tolist() for key, rows in again.features.items()} == {
        key: rows.tolist() for key, rows in found.features.items()
    }


def test_frames_and_windows_are_drawn_evenly():
    assert embedded_frames(4).tolist() == [0, 1, 2, 3]
    assert embedded_frames(31).tolist() == list(range(0, 31, 2))
    assert window_starts(15) == [] and window_starts(16) == [0]
    assert window_starts(40) == [0, 24] and window_starts(100) == [0, 28, 56, 84]


def test_a_video_that_breaks_off_is_an_error(truth, frames, tmp_path):
    path = tmp_path / "dance_001.mp4"
    write_video(path, frames, 8)
    table = VideoReader(path).table
    path.write_bytes(path.read_bytes()[:-2000])
    source = video_source(VideoReader(path, table), np.arange(20))
    with pytest.raises(ValueError, match="replace the file"):
        measure(paired(truth, source), Tools(), ["psnr"])
