"""Windows of dances: which moment, which body, what is mirrored and stretched, what no video has to tell."""

import json
import shutil
from fractions import Fraction

import numpy as np
import pytest

from datasets import DanceDataset, DataError, collate_clips
from datasets.guidance.openpose import flip_order
from datasets.takes import event_columns, resample_features, resample_key_points
from system.errors import ConfigError

NUM_FRAMES, RATE, WIDTH, HEIGHT = 48, 12, 32, 64


def write_dance(root, name, *, rate=RATE, num_frames=NUM_FRAMES):
    """Write 18 points at x = frame / 100 + point / 1000; music is [frame, beat], one every 6 frames."""
    for folder in ("poses", "music_features", "metadata"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    frames, points = np.arange(num_frames), np.full((num_frames, 18, 3), 0.5)
    points[..., 0] = frames[:, None] / 100 + np.arange(18) / 1000
    np.save(root / "poses" / f"{name}.npy", points.astype(np.float32))
    music = np.stack([frames, frames % 6 == 0], 1)
    np.save(root / "music_features" / f"{name}.npy", music.astype(np.float32))
    facts = {"frame_rate": rate, "size": [HEIGHT, WIDTH]}
    (root / "metadata" / f"{name}.json").write_text(json.dumps(facts))


def change(root, folder, edit, name="a"):
    path = root / folder / f"{name}.npy"
    rows = np.load(path)
    edited = edit(rows)
    np.save(path, rows if edited is None else edited)


@pytest.fixture
def root(tmp_path):
    for name in ("a", "b"):
        write_dance(tmp_path, name)
    return tmp_path


def dances(root, **changes):
    quiet = {"sequence_length": 10, "time_stretch": 0.0, "random_flip": False}
    return DanceDataset(root, 2, 18, **{**quiet, **changes})


# ---- an item ----


def test_key_points_and_music_are_of_the_same_moment_in_heights(root):
    dataset = dances(root)
    assert (dataset.sample_ids, dataset.frame_rate, dataset.num_frames(0)) == (["a", "b"], 12, 48)
    starts = set()
    for epoch in range(30):
        dataset.set_epoch(epoch)
        item = dataset[epoch % 2]
        frames = item["music"][:, 0].numpy()
        assert (np.diff(frames) == 1).all() and item["start_seconds"] == pytest.approx(frames[0] / 12)
        np.testing.assert_allclose(item["key_points"][:, 0, 0], frames / 100 * WIDTH / HEIGHT, atol=1e-6)
        starts.add(frames[0])
    assert len(starts) > 10 and item["num_frames"] == 10
    batch = collate_clips([dataset[0], dataset[1]])
    shapes = {key: tuple(batch[key].shape) for key in ("key_points", "music", "reference_pose", "num_frames")}
    assert shapes == {
        "key_points": (2, 10, 18, 3), "music": (2, 10, 2), "reference_pose": (2, 18, 3), "num_frames": (2,)
    }  # fmt: skip


def test_an_item_depends_on_seed_epoch_and_sample_alone(root):
    one, other = (dances(root, time_stretch=0.1, random_flip=True, seed=3) for _ in range(2))
    other[1], other.set_epoch(5), one.set_epoch(5)
    assert all(
        np.array_equal(one[0][key], other[0][key]) for key in ("key_points", "music", "reference_pose")
    )
    one.set_epoch(6)
    assert not np.array_equal(one[0]["key_points"], other[0]["key_points"])


def test_nothing_is_random_without_random_start(root):
    dataset = dances(root, random_start=False, time_stretch=0.1, random_flip=True)
    assert dataset[0]["music"][:, 0].tolist() == list(range(10))
    assert np.array_equal(dataset[0]["reference_pose"], dataset.read_whole(0)["key_points"][0])
    assert dataset.read_window(0, 1.5)["music"][0, 0] == 18
    assert len(dataset.read_whole(0)["music"]) == 48


def test_a_mirrored_dance_exchanges_left_and_right_and_leaves_the_absent_absent(root):
    change(root, "poses", lambda points: points.__setitem__((slice(None), 4), 0.0))
    plain = dances(root)
    mirrored = dances(root, random_flip=True)
    for epoch in range(8):
        plain.set_epoch(epoch), mirrored.set_epoch(epoch)
        before, after = plain[0]["key_points"], mirrored[0]["key_points"]
        if not np.array_equal(before, after):
            break
    expected = mirrored[0]["music"][:, :1].numpy() / 100 + np.array(flip_order(18)) / 1000
    present = after[..., 2] > 0
    assert not present[:, 7].any() and (after[:, 7] == 0).all() and present.sum() == 170
    np.testing.assert_allclose(after[..., 0][present], (1 - expected)[present] * WIDTH / HEIGHT, atol=1e-6)


def test_a_stretched_dance_keeps_its_music_and_every_beat(root):
    dataset, steps = dances(root, time_stretch=0.1), set()
    for epoch in range(20):
        dataset.set_epoch(epoch)
        music, points = dataset[0]["music"].numpy(), dataset[0]["key_points"]
        np.testing.assert_allclose(points[:, 0, 0], music[:, 0] / 100 * WIDTH / HEIGHT, atol=1e-5)
        steps.add(round(float(np.diff(music[:, 0]).mean()), 4))
        inside = np.arange(0, 48, 6)
        inside = inside[(inside >= music[0, 0]) & (inside <= music[-1, 0])]
        assert music[:, 1].sum() >= len(inside) and set(music[:, 1]) <= {0, 1}
    assert min(steps) < 0.95 and max(steps) > 1.05 and 0.9 <= min(steps) and max(steps) <= 1.1


def test_another_frame_rate_is_met_by_time(root):
    write_dance(root, "b", rate=24, num_frames=96)
    dataset = dances(root, random_start=False)
    assert dataset[1]["music"][:, 0].tolist() == list(range(0, 20, 2)) and dataset.num_frames(1) == 48
    assert dances(root, frame_rate=24, random_start=False)[0]["music"][:4, 0].tolist() == [0, 0.5, 1, 1.5]


def test_music_of_its_own_rate(root):
    (root / "music_features" / "meta.json").write_text('{"fps": 24}')
    for name in ("a", "b"):
        change(root, "music_features", lambda rows: np.repeat(rows, 2, 0), name)
    assert dances(root, random_start=False)[0]["music"][:, 0].tolist() == list(range(10))


def test_a_video_tells_its_times_where_no_metadata_does(root, write_numbered):
    shutil.rmtree(root / "metadata")
    for name in ("a", "b"):  # the second half is half as fast
        pts = [*range(24), *range(24, 72, 2)]
        write_numbered(root / "videos" / f"{name}.mkv", 48, pts=pts, time_base=Fraction(1, 12))
    whole = dances(root, frame_rate=12).read_whole(0)
    assert whole["music"][[10, 24, 25, 70], 0].tolist() == pytest.approx([10, 24, 24.5, 47], abs=2e-3)
    assert whole["key_points"][0, 0, 1] == 0.5 and whole["key_points"][2, 0, 0] == pytest.approx(
        0.02
    )  # square


def test_a_take_shorter_than_the_window_ends_within_it(root):
    item = dances(root, sequence_length=60)[0]
    assert item["num_frames"] == 48 and (item["key_points"][48:] == 0).all()
    assert (item["key_points"][:48, :, 2] > 0).all() and (item["music"][48:] == item["music"][47]).all()


def test_the_reference_shows_a_whole_body(root):
    def only_frame_7(points):
        points[:7, 1] = points[8:20, 11] = points[20:, 2:8] = 0

    change(root, "poses", only_frame_7)
    dataset, whole = dances(root), dances(root).read_whole(0)["key_points"]
    for epoch in range(10):
        dataset.set_epoch(epoch)
        assert np.array_equal(dataset[0]["reference_pose"], whole[7])


def test_a_body_bent_towards_the_camera_is_no_reference(root):
    def bend(points):
        points[:, [8, 11], 1] = 0.7
        points[:20, [8, 11], :2] = points[:20, [1], :2]

    change(root, "poses", bend)
    dataset = dances(root)
    for epoch in range(10):
        dataset.set_epoch(epoch)
        assert dataset[0]["reference_pose"][8, 1] == np.float32(0.7)


def test_features_of_whole_takes_come_before_windows(root):
    def with_row_count(rows):
        return np.concatenate([rows, np.full((len(rows), 1), len(rows))], 1)

    dataset = dances(root, music_features=with_row_count)
    assert dataset[0]["music"].shape == (10, 3) and dataset[0]["music"][0, 2] == 48
    assert (dataset.read_whole(0)["music"][:, 2] == 48).all()


# ---- between rows ----


def test_points_absent_on_either_side_are_absent():
    points = np.tile(np.arange(6.0, dtype=np.float32)[:, None, None], (1, 1, 3)) + 1
    points[3] = 0
    found = resample_key_points(points, np.array([1.0, 1.5, 2.0, 2.5, 3.5, 4.0]))
    assert found[:, 0, 0].tolist() == [2, 2.5, 3, 0, 0, 5] and found[:, 0, 2].tolist() == [2, 2, 3, 0, 0, 5]


def test_events_are_marks_of_single_rows_and_none_is_lost():
    rows = np.zeros((40, 3), np.float32)
    rows[3::7, 0], rows[5:20, 1], rows[:, 2] = 1, 1, np.arange(40)
    events = event_columns(rows)
    assert events.tolist() == [0]
    for step in (0.4, 0.9, 1.1, 2.5):
        found = resample_features(rows, np.arange(0, 39.01, step), events)
        assert found[:, 0].sum() == rows[:, 0].sum() and found[1, 2] == pytest.approx(step)


# ---- faults ----


def faults():
    def nan(rows):
        rows[3, 1] = np.nan

    def no_neck(points):
        points[:, 1] = 0

    def too_few(points):
        return points[:, :17]

    def cut(rows):
        return rows[:40]

    def remove(*parts):
        return lambda root: root.joinpath(*parts).unlink()

    return {
        "NaN": (lambda root: change(root, "music_features", nan), "a.npy: row 3: NaN or infinite values"),
        "points": (lambda root: change(root, "poses", too_few), "a.npy: 17 key points, expected 18"),
        "no poses": (lambda root: shutil.rmtree(root / "poses"), "poses: no such folder; make it"),
        "0.3 s": (lambda root: write_dance(root, "a", num_frames=4), "lasts 0.33 s, a take needs 1 s"),
        "cut": (lambda root: change(root, "music_features", cut), "40 rows of music for 48 frames"),
        "no rate": (remove("metadata", "a.json"), "no frame rate of sample 'a', and no video"),
        "no neck": (lambda root: change(root, "poses", no_neck), "no frame has the neck and both hips"),
        "no music": (remove("music_features", "a.npy"), "no music for sample 'a'"),
    }


@pytest.mark.parametrize("plant, words", faults().values(), ids=faults())
def test_a_fault_is_one_line_and_can_be_left_out(root, plant, words):
    plant(root)
    with pytest.raises(DataError) as raised:
        dances(root)[0]
    assert words in str(raised.value) and "\n" not in str(raised.value)
    if (root / "poses").is_dir():
        dataset = dances(root, skip_invalid=True)
        assert dataset.sample_ids == ["b"] and words in dataset.left_out[0][1]
        assert dances(root, left_out=dataset.left_out).sample_ids == ["b"]


def test_points_of_no_known_order(root):
    with pytest.raises(ConfigError, match="is 17: a dance needs OpenPose's order of points, 18, 24, 92, 134"):
        DanceDataset(root, 2, 17, sequence_length=10)
