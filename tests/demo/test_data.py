"""The demo set: music that tells of light and moves, splits apart, the documented layout."""

import av
import numpy as np
import pytest

from datasets import DanceDataset, GuidanceDataset
from datasets.data_folder import recorded_recipe
from demo.dancer import LIGHT_DECAY_SECONDS
from demo.data import FIRST_SEEDS, FRAME_RATE, DemoScene, main, sample_scene
from demo.music import CHORD_ROOTS, SAMPLE_RATE, music_features


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    sizes = ["--num_train", "2", "--num_validation", "1", "--num_workers", "1"]
    assert main(["--output_dir", str(folder), *sizes]) == 0
    return folder


def features_of(scene: DemoScene) -> np.ndarray:
    beats = scene.song.beat_times(scene.num_frames / FRAME_RATE)
    return music_features(scene.sound(), scene.frame_seconds, beats)


@pytest.mark.parametrize("seed", [3, 500_011])
def test_features_tell_the_chord_and_the_beat(seed):
    scene = DemoScene(seed)
    features, song = features_of(scene), scene.song
    chord, since_chord = song.chord_position(scene.frame_seconds)
    roots = np.array(CHORD_ROOTS)[np.array(song.chord_moves)[chord]]
    # Away from its ends, where the window hears one chord only.
    settled = (since_chord > 0.1) & (since_chord < 2 * song.beat_seconds - 0.1)
    heard = features[:, 21:33].argmax(axis=1)
    assert (heard == roots)[settled].mean() > 0.95
    beat_frames = np.flatnonzero(features[:, 34])
    distance = np.abs(scene.frame_seconds[beat_frames, None] - song.beat_times(scene.num_frames / FRAME_RATE))
    assert distance.min(axis=1).max() <= 0.5 / FRAME_RATE + 1e-9


def test_a_click_in_the_sound_is_where_the_song_has_its_beat():
    scene = DemoScene(5)
    sound = scene.sound()
    envelope = np.abs(np.convolve(sound, np.ones(64) / 64, mode="same"))
    for beat in scene.song.beat_times(3.0):
        around = slice(max(0, int((beat - 0.03) * SAMPLE_RATE)), int((beat + 0.06) * SAMPLE_RATE))
        before = slice(max(0, int((beat - 0.10) * SAMPLE_RATE)), max(1, int((beat - 0.03) * SAMPLE_RATE)))
        assert envelope[around].max() > envelope[before].max()


def test_light_is_brightest_on_the_beat_and_fades():
    scene = DemoScene(7)
    since_beat = scene.song.seconds_since_beat(scene.frame_seconds)
    brightness = np.array([stage.brightness for stage in scene.light])
    assert np.allclose(brightness, 0.45 + 0.55 * np.exp(-since_beat / LIGHT_DECAY_SECONDS))
    assert brightness.argmax() == since_beat.argmin()


def test_key_points_lie_on_the_drawn_dancer():
    scene = DemoScene(9)
    frames, points = scene.frames(), scene.key_points()
    assert points.shape == (40, 134, 3)
    for index in (0, 13, 39):
        body = np.abs(frames[index].astype(int) - scene.empty_stage(index)).max(axis=-1) > 20
        wrist_elbow_knee = points[index, [3, 4, 6, 7, 9, 12]]
        inside = wrist_elbow_knee[wrist_elbow_knee[:, 2] > 0]
        pixels = np.clip((inside[:, :2] * 128).astype(int), 0, 127)
        assert all(body[y, x] for x, y in pixels)


def test_splits_never_share_a_dancer_and_seeds_repeat():
    assert sample_scene("train_00001").seed == FIRST_SEEDS["train"] + 1
    assert sample_scene("validation_00001").seed == FIRST_SEEDS["validation"] + 1
    assert np.array_equal(DemoScene(4).frames(), DemoScene(4).frames())
    assert not np.array_equal(DemoScene(4).reference_image(), DemoScene(500_004).reference_image())


def test_the_folder_is_an_ordinary_data_folder(demo_folder):
    dataset = GuidanceDataset(
        demo_folder / "train", ["music", "pose"], [35, 134], resolution=128, sequence_length=8
    )
    assert dataset.sample_ids == ["train_00000", "train_00001"]
    clip, scene = dataset.read_clip(1, 4), sample_scene("train_00001")
    assert np.allclose(clip["guidance"]["pose"].numpy(), scene.key_points()[4:12], atol=1e-4)
    assert np.allclose(clip["guidance"]["music"].numpy(), features_of(scene)[4:12], atol=1e-5)
    drawn = scene.frames()[4:12].transpose(0, 3, 1, 2) / 127.5 - 1
    assert np.abs(clip["frames"].numpy() - drawn).mean() < 0.05  # h264 loses a little
    with av.open(str(dataset.video_path(1))) as container:
        assert container.streams.audio and container.streams.video


def test_the_folder_is_one_of_dances_too(demo_folder):
    dances = DanceDataset(demo_folder / "train", 35, 134, sequence_length=8, random_start=False)
    assert dances.frame_rate == FRAME_RATE
    points = sample_scene("train_00001").key_points()[:8]  # of a square frame
    assert np.allclose(dances[1]["key_points"], points * (points[..., 2:] > 0), atol=1e-4)
    recipes = [recorded_recipe(demo_folder / "train", dances.sample_ids, name) for name in ("music", "pose")]
    assert recipes == ["demo35", "demo134"]


def test_running_again_leaves_what_is_there_and_refuses_another_size(demo_folder, capsys):
    video_path = demo_folder / "train" / "videos" / "train_00000.mp4"
    written = video_path.stat().st_mtime_ns
    arguments = ["--output_dir", str(demo_folder), "--num_validation", "1", "--num_workers", "1"]
    assert main([*arguments, "--num_train", "2"]) == 0
    assert video_path.stat().st_mtime_ns == written
    assert main([*arguments, "--num_train", "3"]) == 2
    assert "holds 2 videos where 3 were asked for" in capsys.readouterr().err
    assert main([*arguments, "--num_train", "2", "--num_frames", "64"]) == 2
    assert "holds samples of 40 frames where 64 were asked for" in capsys.readouterr().err


def test_samples_of_another_length(tmp_path):
    flags = "--num_train 1 --num_validation 1 --num_workers 1 --num_frames 9"
    assert main(["--output_dir", str(tmp_path), *flags.split()]) == 0
    assert len(np.load(tmp_path / "validation/music_features/validation_00000.npy")) == 9
    assert len([*(tmp_path / "validation/poses/validation_00000").iterdir()]) == 9
