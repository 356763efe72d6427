"""One raw video to its samples: what is written agrees with the video, whatever its clock and shape."""

import json
import struct

import numpy as np
import pytest
from PIL import Image

import prepare_guidance
from datasets import DataError, VideoReader, check_data, read_music, read_pose_folder
from datasets.media.sound import read_audio
from preparation.pose.estimators import make_pose_estimator
from preparation.prepare_video import prepare_video
from preparation.settings import Settings
from preparation.sources import list_sources

pytest.importorskip("librosa", reason="pip install -r requirements-prepare.txt")


@pytest.fixture
def prepare(tmp_path, marker_module):
    """prepare(**settings): prepares the videos of tmp_path/raw; returns their results."""

    def run(*, music_file=None, **settings):
        function = f"{marker_module}:level"
        settings = Settings(
            **{"pose_estimator": f"{marker_module}:find_markers", "music_features": function, **settings}
        )
        sources, faults = list_sources(tmp_path / "raw", music_file)
        assert not faults
        estimator = make_pose_estimator(settings)
        return [prepare_video(source, settings, tmp_path / "data", estimator) for source in sources]

    return run


def metadata(tmp_path, name="dance"):
    return json.loads((tmp_path / "data" / "metadata" / f"{name}.json").read_text())


def red_centre(frame):
    rows, columns = np.nonzero((frame[..., 0] > 150) & (frame[..., 1] < 100))
    return np.array([columns.mean() + 0.5, rows.mean() + 0.5]) / frame.shape[1::-1]


def check_sample(tmp_path, name="dance", num_features=2):
    """(reader, points, features) of a sample without faults, whose points lie on the squares."""
    root = tmp_path / "data"
    reader = VideoReader(root / "videos" / f"{name}.mp4")
    points = read_pose_folder(root / "poses" / name, 134)
    features = read_music(root / "music_features" / f"{name}.npy", num_features)
    assert len(reader) == len(points) == len(features)
    report = check_data(root, ["music", "pose"], [num_features, 134], resolution=64, sequence_length=4)
    assert report.ok, report.summary()
    for frame, of_frame in zip(reader.iterate(), points, strict=True):
        np.testing.assert_allclose(red_centre(frame), of_frame[4, :2], atol=0.03)
    return reader, points, features


def test_plain_video(tmp_path, write_raw, prepare):
    raw = write_raw(tmp_path / "raw" / "dance.mp4", click_seconds=[0.5, 1.25])
    (result,) = prepare()
    reader, points, features = check_sample(tmp_path)
    np.testing.assert_allclose(reader.frame_seconds, VideoReader(raw).frame_seconds, atol=1e-9)
    loud = reader.frame_seconds[features[:, 0] > 0.1]
    np.testing.assert_allclose(loud, [0.5, 1.25], atol=1 / 24)
    sound, rate = read_audio(tmp_path / "data" / "videos" / "dance.mp4", 0, 2)
    assert np.flatnonzero(np.abs(sound).max(axis=0) > 0.1)[0] / rate == pytest.approx(0.5, abs=0.005)
    facts = metadata(tmp_path)
    assert (
        facts["num_frames"] == 24 and facts["frame_rate"] == pytest.approx(12) and facts["size"] == [96, 64]
    )
    assert facts["variable_frame_rate"] is False
    assert facts["people"] == 1 and facts["start_seconds"] == 0 and facts["source"]["file"] == "dance.mp4"
    assert facts["music_features"]["channels"] == 2 and facts["notes"] == []
    assert facts["poses"] == {"name": facts["settings"]["pose_estimator"], "key_points": 134}
    assert facts["settings"]["resolution"] == 512 and "librosa" in facts["versions"]
    assert "dance: 24 frames 64x96" in result.samples[0] and not result.faults
    image = np.asarray(Image.open(tmp_path / "data" / "reference_images" / "dance.png"))
    np.testing.assert_allclose(red_centre(image), points[facts["reference_frame"], 4, :2], atol=0.03)
    first = json.loads((tmp_path / "data" / "poses" / "dance" / "frame_003.json").read_text())
    assert first["frame_id"] == 3 and first["coordinates"] == "normalized"


def test_variable_rate(tmp_path, write_raw, prepare):
    seconds = np.cumsum([0, *[(1 + k % 4) / 30 for k in range(29)]])
    write_raw(tmp_path / "raw" / "dance.mp4", 30, seconds=seconds, click_seconds=[seconds[11], seconds[20]])
    prepare()
    reader, _, features = check_sample(tmp_path)
    np.testing.assert_allclose(reader.frame_seconds, seconds, atol=1e-9)
    np.testing.assert_allclose(features[:, 1] - features[0, 1], seconds, atol=1e-5)
    assert {11, 20} <= set(np.flatnonzero(features[:, 0] > 0.1))
    assert metadata(tmp_path)["variable_frame_rate"] is True


def test_late_first_frame(tmp_path, write_raw, prepare):
    write_raw(tmp_path / "raw" / "dance.mp4", seconds=0.5 + np.arange(24) / 12, click_seconds=[1.0])
    prepare()
    reader, _, features = check_sample(tmp_path)
    assert reader.frame_seconds[0] == pytest.approx(0.5)
    assert np.flatnonzero(features[:, 0] > 0.1).tolist() == [6]  # at 1.0 s
    sound, rate = read_audio(tmp_path / "data" / "videos" / "dance.mp4", 0, 2)
    assert np.flatnonzero(np.abs(sound).max(axis=0) > 0.1)[0] / rate == pytest.approx(1.0, abs=0.005)


def test_rotation_is_applied_and_the_size_reduced(tmp_path, write_raw, prepare):
    raw = write_raw(tmp_path / "raw" / "dance.mp4", size=(160, 240))
    content = bytearray(raw.read_bytes())
    a, b, c, d = (value << 16 for value in (0, 1, -1, 0))  # a quarter turn
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    raw.write_bytes(content)
    assert VideoReader(raw).size == (240, 160)
    prepare(resolution=80)
    reader, _, _ = check_sample(tmp_path)
    assert reader.size == (120, 80) and not any(reader.table.display.turn)


def test_pixels_become_square(tmp_path, write_raw, prepare):
    """Video, poses and reference image are of the frame that a player shows."""
    write_raw(tmp_path / "raw" / "dance.mp4", shape=(2, 1))
    (result,) = prepare(resolution=80)
    assert "pixel aspect ratio 2:1: shown as 128x96" in result.notes
    reader, _, _ = check_sample(tmp_path)
    assert reader.size == (80, 106) and reader.notes == ()
    with Image.open(tmp_path / "data" / "reference_images" / "dance.png") as reference:
        assert reference.size == (106, 80)


def test_scenes_become_samples(tmp_path, write_raw, draw, prepare):
    scenes = [
        [draw((96, 64), [(0.1 + 0.02 * k, 0.3, 0.3)], colour) for k in range(length)]
        for colour, length in (((40, 80, 40), 18), ((200, 200, 90), 6), ((20, 20, 120), 30))
    ]
    write_raw(tmp_path / "raw" / "dance.mp4", frames=sum(scenes, []), click_seconds=[0.3, 2.5, 3.5, 4.25])
    (result,) = prepare(max_seconds=1.5)
    assert [line.split(":")[0] for line in result.samples] == ["dance_000", "dance_001", "dance_002"]
    assert result.notes == ["left out: 1.50 s to 2.00 s, between scene changes, shorter than --min_seconds 1"]
    reader, _, features = check_sample(tmp_path, "dance_002")
    facts = metadata(tmp_path, "dance_002")
    assert facts["start_seconds"] == pytest.approx(3.25) and facts["num_pieces"] == 3
    np.testing.assert_allclose(reader.frame_seconds, np.arange(15) / 12, atol=1e-9)
    assert np.flatnonzero(features[:, 0] > 0.1).tolist() == [3, 12]  # 3.5 s and 4.25 s of the source
    sound, rate = read_audio(tmp_path / "data" / "videos" / "dance_002.mp4", 0, 2)
    assert np.flatnonzero(np.abs(sound).max(axis=0) > 0.1)[0] / rate == pytest.approx(0.25, abs=0.005)
    assert all(0 <= beat < 1.25 for beat in facts["beat_seconds"])


def test_scenes_are_kept_together_on_request(tmp_path, write_raw, draw, prepare):
    frames = [draw((96, 64), [(0.2, 0.3, 0.3)], c) for c in ((40, 80, 40), (200, 200, 90)) for _ in range(12)]
    write_raw(tmp_path / "raw" / "dance.mp4", frames=frames)
    prepare(scene_cuts=False)
    assert len(check_sample(tmp_path)[0]) == 24


def test_largest_of_several_people_is_tracked(tmp_path, write_raw, draw, prepare):
    frames = [
        draw((96, 64), [(0.05, 0.1 + 0.02 * k, 0.35), (0.6, 0.1, 0.2), (0.6, 0.9, 0.2)][: 3 if k > 3 else 1])
        for k in range(24)
    ]
    write_raw(tmp_path / "raw" / "dance.mp4", frames=frames)
    (result,) = prepare()
    points = read_pose_folder(tmp_path / "data" / "poses" / "dance", 134)
    assert (points[:, 4, 0] < 0.3).all() and (points[..., 2] > 0).all()
    facts = metadata(tmp_path)
    assert facts["people"] == 3
    assert facts["notes"] == ["up to 3 people in 20 of 24 frames: the largest is tracked"]
    assert result.notes == facts["notes"]


def test_frames_without_the_dancer_have_absent_points(tmp_path, write_raw, draw, prepare):
    frames = [draw((96, 64), [(0.2, 0.3, 0.3)] if k % 4 else []) for k in range(24)]
    write_raw(tmp_path / "raw" / "dance.mp4", frames=frames)
    (result,) = prepare()
    points = read_pose_folder(tmp_path / "data" / "poses" / "dance", 134)
    assert not points[::4].any() and (points[1::4, :, 2] > 0).all()
    assert "the dancer is found in 18 of 24 frames only" in result.notes[0]


# ---- sound ----


def test_sound_file_beside_a_silent_video(tmp_path, write_raw, write_clicks, prepare):
    write_raw(tmp_path / "raw" / "dance.mp4", click_seconds=None)
    write_clicks(tmp_path / "raw" / "dance.wav", [0.75], seconds=3)
    (result,) = prepare()
    _, _, features = check_sample(tmp_path)
    assert np.flatnonzero(features[:, 0] > 0.1).tolist() == [9]
    assert result.notes == ["has no sound, dance.wav is taken"]
    assert metadata(tmp_path)["sound"]["file"] == "dance.wav"


def test_own_sound_comes_before_a_file_beside_it(tmp_path, write_raw, write_clicks, prepare):
    write_raw(tmp_path / "raw" / "dance.mp4", click_seconds=[0.5])
    write_clicks(tmp_path / "raw" / "dance.wav", [1.25], seconds=3)
    (result,) = prepare()
    assert np.flatnonzero(check_sample(tmp_path)[2][:, 0] > 0.1).tolist() == [6]
    assert result.notes == ["has sound of its own, which is taken; dance.wav is not used"]


def test_music_file_replaces_the_sound(tmp_path, write_raw, write_clicks, prepare):
    write_raw(tmp_path / "raw" / "dance.mp4", click_seconds=[0.5])
    music_file = write_clicks(tmp_path / "song.wav", [1.25], seconds=3)
    prepare(music_file=music_file)
    assert np.flatnonzero(check_sample(tmp_path)[2][:, 0] > 0.1).tolist() == [15]


@pytest.mark.parametrize(
    ("click_seconds", "problem"), [(None, "has no sound"), ([], "its sound is silent from 0.0 s to 2.0 s")]
)
def test_missing_or_silent_sound_is_a_fault(tmp_path, write_raw, prepare, click_seconds, problem):
    write_raw(tmp_path / "raw" / "dance.mp4", click_seconds=click_seconds)
    with pytest.raises(
        DataError, match=rf"dance\.mp4: {problem}.*; put a sound file of the same name beside"
    ):
        (result,) = prepare()
        raise result.faults[0]
    assert not (tmp_path / "data" / "videos" / "dance.mp4").exists()


# ---- faults ----


def test_video_without_a_person_is_a_fault(tmp_path, write_raw, draw, prepare):
    write_raw(tmp_path / "raw" / "dance.mp4", frames=[draw((96, 64), [])] * 24)
    (result,) = prepare()
    assert "no person is found from 0.0 s to 2.0 s" in str(result.faults[0])
    assert not (tmp_path / "data" / "metadata" / "dance.json").exists()


def test_piece_after_a_faulty_one_is_known_again(tmp_path, write_raw, draw, prepare):
    nobody = [draw((96, 64), [], background=(20, 20, 200))] * 18
    somebody = [draw((96, 64), [(0.1 + 0.01 * k, 0.3, 0.3)]) for k in range(18)]
    write_raw(tmp_path / "raw" / "dance.mp4", frames=nobody + somebody, click_seconds=[0.3, 2.5])
    (first,), (again,) = prepare(), prepare()
    assert "dance_001: 18 frames" in first.samples[0] and again.notes == ["dance_001 is done already"]
    for result in (first, again):
        assert len(result.faults) == 1 and "no person is found from 0.0 s to 1.5 s" in str(result.faults[0])


def test_too_short_video_is_a_fault(tmp_path, write_raw, prepare):
    write_raw(tmp_path / "raw" / "dance.mp4", 8)
    with pytest.raises(DataError, match="as long as --min_seconds 1; lower --min_seconds"):
        prepare()


def test_files_that_are_not_ours_are_left_alone(tmp_path, write_raw, prepare):
    write_raw(tmp_path / "raw" / "dance.mp4")
    own = tmp_path / "data" / "videos" / "dance.mp4"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"the user's")
    (result,) = prepare()
    assert (
        "is there already, but not as a sample" in str(result.faults[0]) and own.read_bytes() == b"the user's"
    )


def test_a_pose_that_jumps_is_a_warning_with_its_frames(tmp_path, write_raw, draw, prepare):
    """Somebody alone is followed wherever they are seen; nobody gets there in a twelfth of a second."""
    frames = [draw((96, 64), [(0.1 if k < 9 or k > 12 else 0.65, 0.4, 0.3)]) for k in range(24)]
    write_raw(tmp_path / "raw" / "dance.mp4", frames=frames)
    (result,) = prepare(scene_cuts=False)
    assert "warning: the pose jumps between two people in frames 9-12" in result.notes
    assert metadata(tmp_path)["notes"] == result.notes
    lines = prepare_guidance.report_lines(result)
    assert "  warning: the pose jumps between two people in frames 9-12" in lines
