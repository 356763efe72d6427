"""Clips: which frame, which guidance row, and what happens to faulty data."""

import json
import pickle
import shutil
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets import DataError, GuidanceDataset, collate_clips


def numbers_shown(item, read_number):
    return [read_number(frame.permute(1, 2, 0)) for frame in item["frames"]]


# ---- an item ----


def test_item_has_the_documented_contents(shared_root, make):
    item = make(shared_root)[1]
    assert {key: tuple(value.shape) for key, value in item.items() if isinstance(value, torch.Tensor)} == {
        "frames": (4, 3, 64, 64), "reference_image": (3, 64, 64), "clip_image": (3, 224, 224),
        "frame_indices": (4,), "frame_seconds": (4,),
    }  # fmt: skip
    assert {name: tuple(value.shape) for name, value in item["guidance"].items()} == {
        "music": (4, 5), "pose": (4, 134, 3),
    }  # fmt: skip
    assert item["sample_id"] == "dance_002"
    assert item["frame_indices"].dtype == torch.int64 and item["frame_seconds"].dtype == torch.float64
    assert item["frames"].dtype == item["guidance"]["pose"].dtype == torch.float32
    assert -1 <= item["frames"].min() < -0.9 and 0.9 < item["frames"].max() <= 1


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_frames_music_and_poses_are_of_the_same_moment(shared_root, make, read_number, stride):
    dataset = make(shared_root, frame_stride=stride)
    for epoch in range(8):
        dataset.set_epoch(epoch)
        item = dataset[epoch % len(dataset)]
        frames = item["frame_indices"].tolist()
        assert frames == list(range(frames[0], frames[0] + 4 * stride, stride))
        assert numbers_shown(item, read_number) == frames
        assert item["guidance"]["music"][:, 0].tolist() == frames
        np.testing.assert_allclose(item["guidance"]["pose"][:, 7, 0], np.array(frames) / 100, atol=1e-6)
        np.testing.assert_allclose(item["frame_seconds"], np.array(frames) / 12, atol=1e-9)


def test_starts_reach_both_ends(shared_root, make):
    dataset = make(shared_root, frame_stride=7)
    starts = set()
    for epoch in range(40):
        dataset.set_epoch(epoch)
        starts.add(int(dataset[0]["frame_indices"][0]))
    assert starts == {0, 1, 2}  # 24 frames, a clip spans 22


def test_clip_depends_on_seed_epoch_and_sample_only(shared_root, make):
    def starts(seed, epoch, order):
        dataset = make(shared_root, seed=seed)
        dataset.set_epoch(epoch)
        return {index: int(dataset[index]["frame_indices"][0]) for index in order}

    assert starts(1, 5, [0, 1, 2]) == starts(1, 5, [2, 1, 0])
    assert len({str(starts(1, epoch, [0, 1, 2])) for epoch in range(5)}) > 1
    assert len({str(starts(seed, 5, [0, 1, 2])) for seed in range(5)}) > 1
    again = [make(shared_root)[1] for _ in range(2)]
    assert torch.equal(again[0]["frames"], again[1]["frames"])


def test_read_clip_is_fixed(shared_root, make, read_number):
    dataset = make(shared_root)
    first = dataset.read_clip(0, start_frame=9)
    dataset.set_epoch(3)
    again = dataset.read_clip(0, start_frame=9)
    assert numbers_shown(first, read_number) == [9, 10, 11, 12]
    assert torch.equal(first["frames"], again["frames"])
    assert make(shared_root, random_start=False)[0]["frame_indices"].tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="too short for a clip of 4 frames from frame 21"):
        dataset.read_clip(0, start_frame=21)


def test_image_format_gives_single_frames(shared_root, make, read_number):
    dataset = make(shared_root, data_format="image")
    item = dataset[0]
    assert item["frames"].shape == (1, 3, 64, 64) and item["guidance"]["pose"].shape == (1, 134, 3)
    assert numbers_shown(item, read_number) == item["frame_indices"].tolist()


def test_what_a_dataset_says_about_itself(shared_root, make):
    dataset = make(shared_root)
    assert dataset.sample_ids == ["dance_001", "dance_002", "dance_003"] and len(dataset) == 3
    assert dataset.video_path(2) == shared_root / "videos" / "dance_003.mp4"
    assert dataset.num_frames(0) == 24
    assert dataset.condition_shapes == {"music": (5,), "pose": (134, 3)}
    mean, deviation = dataset.feature_statistics()["music"]
    np.testing.assert_allclose(mean, [11.5, 1, 2, 3, 4], rtol=1e-6)
    np.testing.assert_allclose(deviation, [np.arange(24).std(), 0, 0, 0, 0], atol=1e-6)


def test_statistics_of_features_far_from_zero(data_root, make):
    values = 1e4 + np.random.default_rng(0).normal(size=(48, 5))
    for index, sample_id in enumerate(("dance_001", "dance_002")):
        shutil.rmtree(data_root / "music_features" / sample_id)
        np.save(
            data_root / "music_features" / f"{sample_id}.npy", values[24 * index :][:24].astype(np.float64)
        )
    dataset = make(data_root)
    for indices, kept in ((None, values), ([1], values[24:])):  # what is held out is left out
        mean, deviation = dataset.feature_statistics(indices)["music"]
        stored = kept.astype(np.float32).astype(np.float64)
        np.testing.assert_allclose(mean, stored.mean(0), rtol=1e-7)
        np.testing.assert_allclose(deviation, stored.std(0), rtol=1e-5)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_from_workers_too(shared_root, make, num_workers):
    dataset = make(shared_root)
    dataset[0]  # its caches must not be in the way of sending it to a worker
    loader = DataLoader(dataset, batch_size=3, collate_fn=collate_clips, num_workers=num_workers)
    (batch,) = loader
    assert batch["frames"].shape == (3, 4, 3, 64, 64) and batch["guidance"]["pose"].shape == (3, 4, 134, 3)
    assert batch["sample_id"] == dataset.sample_ids
    assert torch.equal(batch["frames"][1], dataset[1]["frames"])


def test_dataset_can_be_pickled(shared_root, make):
    dataset = make(shared_root)
    expected = dataset[2]["frames"]
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[2]["frames"], expected)


def test_error_in_a_worker_is_one_line(data_root, make):
    path = data_root / "poses" / "dance_001" / "frame_003.json"
    path.write_text("{")
    loader = DataLoader(make(data_root), collate_fn=collate_clips, num_workers=1)
    with pytest.raises(DataError) as error:
        list(loader)
    assert str(error.value).startswith(f"{path}: is not valid JSON") and "\n" not in str(error.value)


# ---- alignment by time ----


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("feature_fps", [30.0, 43.066, 12.0, 5.0])
def test_a_beat_lands_on_the_frame_shown_then(data_root, make, feature_fps, stride):
    """Music at its own rate with one beat at 1.0 s: its row belongs to frame 12 of a 12-a-second video."""
    for sample_id in ("dance_001", "dance_002"):
        shutil.rmtree(data_root / "music_features" / sample_id)
        music = np.zeros((int(2 * feature_fps) + 1, 5), np.float32)
        music[round(1.0 * feature_fps), 4] = 1
        np.save(data_root / "music_features" / f"{sample_id}.npy", music)
    dataset = make(data_root, music_feature_fps=feature_fps, frame_stride=stride)
    item = dataset.read_clip(0, start_frame=12 - 2 * stride)
    beats = item["frame_seconds"][item["guidance"]["music"][:, 4] > 0]
    assert 1.0 in beats.tolist() and (beats - 1).abs().max() <= 0.5 / feature_fps + 1e-9


def test_beat_of_a_variable_rate_video(tmp_path, make, write_numbered):
    """Frames 0.1 s apart up to 1 s, then 0.02 s apart: rows follow the time, not the number."""
    pts = [10 * k for k in range(10)] + [100 + 2 * k for k in range(20)]
    write_numbered(tmp_path / "videos" / "a.mp4", 30, pts=pts, time_base=Fraction(1, 100))
    write_music(tmp_path, np.arange(70.0), fps=50)
    Image.new("RGB", (64, 64)).save(make_folder(tmp_path / "reference_images") / "a.jpg")
    dataset = make(tmp_path, guidance_types=["music"], guidance_input_channels=[1])
    rows = dataset.read_clip(0, start_frame=8)["guidance"]["music"][:, 0]
    assert rows.tolist() == [40, 45, 50, 51]


def make_folder(path):
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_music(root, rows, fps):
    folder = make_folder(root / "music_features" / "a")
    for index, value in enumerate(rows):
        np.save(folder / f"{index}.npy", np.array([value], np.float32))
    (folder / "meta.json").write_text(json.dumps({"fps": fps}))


def test_meta_of_a_video_beats_that_of_the_type_and_the_setting(data_root, make):
    for index in range(24):  # dance_001 has its 24 rows for 2 seconds at 12, dance_002 twice as many
        np.save(
            data_root / "music_features" / "dance_002" / f"{24 + index}.npy",
            np.full(5, 24 + index, np.float32),
        )
    (data_root / "music_features" / "meta.json").write_text('{"fps": 12}')
    (data_root / "music_features" / "dance_002" / "meta.json").write_text('{"fps": 24}')
    dataset = make(data_root, music_feature_fps=99.0)
    assert dataset.read_clip(0, 5)["guidance"]["music"][:, 0].tolist() == [5, 6, 7, 8]
    assert dataset.read_clip(1, 5)["guidance"]["music"][:, 0].tolist() == [10, 12, 14, 16]


def test_music_that_ends_before_the_video(data_root, make):
    dataset = make(data_root, music_feature_fps=30.0)  # 24 rows last 0.8 s of 1.9
    with pytest.raises(
        DataError, match=r"music_features/dance_001: ends at 0\.80 s .* last frame is at 1\.92 s"
    ):
        dataset[0]


@pytest.mark.parametrize("folder", ["poses", "music_features"])
@pytest.mark.parametrize("extra", [-1, 1])
def test_rows_must_be_as_many_as_frames(data_root, make, folder, extra):
    suffix = ".json" if folder == "poses" else ".npy"
    files = sorted((data_root / folder / "dance_001").iterdir())
    if extra < 0:
        files[-1].unlink()
    else:
        content = (
            files[-1].read_text().replace('"frame_id": 23', '"frame_id": 24') if suffix == ".json" else None
        )
        new = files[-1].with_name(f"frame_024{suffix}")
        new.write_text(content) if content else shutil.copy(files[-1], new)
    with pytest.raises(
        DataError, match=rf"{folder}/dance_001: {24 + extra} rows of .* for 24 frames; make one"
    ):
        make(data_root)[0]


def test_music_arrays_are_passed_on_as_they_are(data_root, make):
    values = np.random.default_rng(0).normal(size=(24, 5, 3, 7)).astype(np.float32)
    for sample_id in ("dance_001", "dance_002"):
        shutil.rmtree(data_root / "music_features" / sample_id)
        np.save(data_root / "music_features" / f"{sample_id}.npy", values)
    dataset = make(data_root)
    assert dataset.condition_shapes["music"] == (5, 3, 7)
    np.testing.assert_array_equal(dataset.read_clip(0, 6)["guidance"]["music"], values[6:10])
    mean, deviation = dataset.feature_statistics()["music"]
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(deviation, values.std((0, 2, 3)), atol=1e-6)


def test_samples_must_be_shaped_alike(data_root, make):
    shutil.rmtree(data_root / "music_features" / "dance_002")
    np.save(data_root / "music_features" / "dance_002.npy", np.ones((24, 5, 2, 2)))
    with pytest.raises(
        DataError, match=r"dance_002\.npy: a frame's music is \[5, 2, 2\], but \[5\] in sample"
    ):
        make(data_root)[1]


# ---- units and names ----


def test_pixel_key_points_equal_normalized_ones(data_root, make):
    for path in (data_root / "poses" / "dance_002").iterdir():
        content = json.loads(path.read_text())
        content["keypoints"] = [[64 * x, 64 * y, confidence] for x, y, confidence in content["keypoints"]]
        path.write_text(json.dumps(content))
    dataset = make(data_root)
    poses = [dataset.read_clip(index, 10)["guidance"]["pose"] for index in range(2)]
    torch.testing.assert_close(poses[0], poses[1])


def test_stated_units_are_believed_and_held_to(data_root, make):
    """Small numbers that are said to be pixels, and one file that says otherwise."""
    for path in (data_root / "poses" / "dance_001").iterdir():
        content = json.loads(path.read_text())
        units = "normalized" if path.stem.endswith("020") else "pixel"
        path.write_text(json.dumps({**content, "coordinates": units}))
    dataset = make(data_root)
    pose = dataset.read_clip(0, 10)["guidance"]["pose"]
    np.testing.assert_allclose(pose[:, 0, 0], np.arange(10, 14) / 100 / 64, atol=1e-7)
    with pytest.raises(
        DataError, match=r"frame_020\.json: coordinates is 'normalized', but 'pixel' in its first"
    ):
        dataset.read_clip(0, 19)


def test_names_with_spaces_capitals_and_hangul(data_root, make, settings):
    import unicodedata

    new = "춤 연습 No.1"
    for folder, suffix in (("videos", ".mp4"), ("reference_images", ".png")):
        path = data_root / folder / f"dance_001{suffix}"
        path.rename(path.with_name(unicodedata.normalize("NFD", new) + suffix.upper()))
    for folder in ("poses", "music_features"):
        (data_root / folder / "dance_001").rename(data_root / folder / new)
    for path in (data_root / "poses" / new).iterdir():
        path.rename(path.with_suffix(".JSON"))
    (data_root / "videos" / "._dance_002.mp4").write_bytes(b"what macOS leaves behind")
    dataset = make(data_root)
    assert dataset.sample_ids == ["dance_002", unicodedata.normalize("NFC", new)]
    assert dataset[1]["frames"].shape == (4, 3, 64, 64)


# ---- faults ----


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("poses", r"poses: no such folder; make it, or take pose out of --guidance_types"),
        ("reference_images", r"reference_images: no such folder"),
        ("videos", r"videos: no such folder"),
        ("poses/dance_001", r"poses/dance_001: no pose for video 'dance_001'; put a file"),
        ("reference_images/dance_002.png", r"dance_002\.jpg: no reference image for video 'dance_002'"),
        ("", "no such data folder"),
    ],
)
def test_what_is_missing_is_named_at_once(data_root, make, missing, message):
    path = data_root / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataError, match=message):
        make(data_root)


def test_several_missing_things_are_counted(data_root, make):
    for path in (data_root / "reference_images").iterdir():
        path.unlink()
    (data_root / "reference_images" / "somebody.png").touch()
    with pytest.raises(DataError, match=r"\(and 1 more, listed by --check_data\)$"):
        make(data_root)


def test_two_videos_of_one_name(data_root, make):
    shutil.copy(data_root / "videos" / "dance_001.mp4", data_root / "videos" / "dance_001.mov")
    with pytest.raises(DataError, match="a second video of the same name"):
        make(data_root)


def test_short_video(data_root, make):
    with pytest.raises(DataError, match=r"dance_001\.mp4: 24 frames, too short for a clip of 25 frames"):
        make(data_root, frame_stride=8)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_input_channels": [5]},
        {"guidance_types": ["pose", "pose"]},
        {"guidance_input_channels": [5, 0]},
        {"fit": "squeeze"},
        {"data_format": "clips"},
        {"frame_stride": 0},
    ],
)
def test_impossible_settings(shared_root, make, changes):
    with pytest.raises(ValueError):
        make(shared_root, **changes)


def test_skip_invalid_leaves_out_and_lists(data_root, make):
    np.save(data_root / "music_features" / "dance_001" / "frame_007.npy", np.full(5, np.nan))
    dataset = make(data_root, skip_invalid=True)
    assert dataset.sample_ids == ["dance_002"]
    ((sample_id, reason),) = dataset.left_out
    assert sample_id == "dance_001" and "frame_007.npy: NaN" in reason


def test_skip_invalid_with_nothing_left(data_root, make):
    shutil.rmtree(data_root / "poses" / "dance_001")
    shutil.rmtree(data_root / "music_features" / "dance_002")
    with pytest.raises(DataError, match="none of its 2 samples is valid"):
        make(data_root, skip_invalid=True)


# ---- real input ----


def test_real_sample(real_data_root):
    dataset = GuidanceDataset(
        real_data_root, ["music", "pose"], [35, 134], resolution=(128, 72), sequence_length=8, frame_stride=2
    )
    item = dataset.read_clip(0, start_frame=100)
    np.testing.assert_allclose(item["frame_seconds"], np.arange(100, 116, 2) / 24)
    assert item["guidance"]["music"].shape == (8, 35)
    present = item["guidance"]["pose"][..., 2] > 0
    assert 0.5 < present.float().mean() < 1
    stored = np.load(real_data_root / "music_features" / "dance_001" / "frame_104.npy")
    np.testing.assert_array_equal(item["guidance"]["music"][2], stored)
