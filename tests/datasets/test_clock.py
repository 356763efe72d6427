"""One clock for everything: videos whose frames show their own time, with music, key points, maps and sound.

Whatever belongs to a moment must come with the frame that shows this moment, by any file's time stamps.
"""

import json
from fractions import Fraction
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from datasets import GuidanceDataset, VideoReader, write_video
from datasets.media.sound import read_audio

CELL, NUM_BITS = 8, 12  # a frame shows its time in milliseconds, up to 4.095, a bit a column
BEATS = np.array([0.31, 0.74, 1.26, 1.9, 2.33, 2.81])  # seconds
SECONDS = 3.2
TICK = Fraction(1, 24_000)
EVEN, NTSC = np.arange(76) / 24, np.arange(76) * 1001 / 24_000
UNEVEN = np.cumsum([0, *([0.03, 0.09, 0.04, 0.05, 0.03] * 13)])  # seconds
STRIDES = (1, 2, 5)
CLICK_TOLERANCE = 0.006  # seconds; lossy sound smears a click by some milliseconds


def clock_frame(seconds: float) -> np.ndarray:
    """uint8 [64, 96, 3]"""
    bits = [255 * (round(1000 * seconds) >> bit & 1) for bit in range(NUM_BITS)]
    return np.repeat(np.tile(np.repeat(np.array(bits, np.uint8), CELL), (64, 1))[..., None], 3, -1)


def shown_seconds(frames) -> np.ndarray:
    """What frames [F, 64, 96, 3] show: uint8, or from -1 to 1."""
    frames = np.asarray(frames, np.float32)
    columns = frames.reshape(len(frames), 64, NUM_BITS, -1).mean((1, 3))
    return (columns > (127.5 if frames.max() > 2 else 0)) @ (1 << np.arange(NUM_BITS)) / 1000


def clicks(rate: int) -> np.ndarray:
    """float32 [N]: a short burst of noise at each beat."""
    sound = np.zeros(round(SECONDS * rate), np.float32)
    burst = np.random.default_rng(0).uniform(-0.8, 0.8, rate // 200).astype(np.float32)
    for beat in BEATS:
        sound[round(beat * rate) :][: len(burst)] = burst
    return sound


def heard_clicks(path, start_seconds=0.0, duration_seconds=10.0) -> np.ndarray:
    """Seconds on the file's clock at which clicks begin."""
    sound, rate = read_audio(path, start_seconds, duration_seconds)
    loud = np.flatnonzero(np.abs(sound[0]) > 0.25)
    return start_seconds + loud[np.diff(loud, prepend=-rate) > rate // 10] / rate


def write_clock(path, seconds, *, codecs=("libx264", "aac"), sound_late=0.0, gap=None, options=None):
    """A clock video with frames at these seconds and clicks at the beats, stamped sound_late seconds late.

    gap: (from, by) in seconds: from there on sound is stamped later still, and nothing is between.
    """
    sample_format = {"aac": "fltp", "libopus": "flt", "libmp3lame": "s32p"}.get(codecs[1], "s16")
    rate = 48_000 if codecs[1] == "libopus" else 44_100
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as output:
        video = output.add_stream(codecs[0], rate=24, options={"bf": "3"} if codecs[0] == "libx264" else {})
        video.width, video.height, video.pix_fmt = CELL * NUM_BITS, 64, "yuv420p"
        video.codec_context.time_base = Fraction(1, 24) if path.suffix == ".avi" else TICK
        sound = output.add_stream(codecs[1], rate=rate, layout="mono")
        packets = []
        for second in seconds:
            frame = av.VideoFrame.from_ndarray(clock_frame(second), format="rgb24")
            frame.time_base = video.codec_context.time_base
            frame.pts = round(second / frame.time_base)
            packets += video.encode(frame)
        size = sound.codec_context.frame_size or 1024
        for first in range(0, round(SECONDS * rate) - size, size):
            block = clicks(rate)[None, first : first + size]
            if sample_format.startswith("s"):
                bits, kind = (32, np.int32) if sample_format == "s32p" else (16, np.int16)
                block = (block * (2 ** (bits - 1) - 1)).astype(kind)
            frame = av.AudioFrame.from_ndarray(block, format=sample_format, layout="mono")
            late = sound_late + (gap[1] if gap and first / rate >= gap[0] else 0)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = first + round(late * rate)
            packets += sound.encode(frame)
        packets += [*video.encode(), *sound.encode()]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return path


# ---- guidance ----

TYPES = {"music": 2, "hands": 3, "energy": 2, "depth": 1}


def write_guidance(root, seconds, fps):
    """Rows at these seconds. music: [time since (negative: until) the nearest beat, 1]; others: the time."""
    since_beat = seconds - BEATS[np.abs(seconds[:, None] - BEATS).argmin(1)]
    folders = {name: root / (name if name != "music" else "music_features") / "a" for name in TYPES}
    for name, folder in folders.items():
        folder.mkdir(parents=True)
        if fps is not None and name != "music":
            (folder / "meta.json").write_text(json.dumps({"fps": fps}))
    np.save(folders["music"].with_suffix(".npy"), np.stack([since_beat, np.ones_like(since_beat)], 1))
    folders["music"].rmdir()
    for row, second in enumerate(seconds):
        points = {"keypoints": [[second / 4, 0.5, 1]] * 3, "coordinates": "normalized"}
        (folders["hands"] / f"frame_{row:03d}.json").write_text(json.dumps(points))
        np.save(folders["energy"] / f"frame_{row:03d}.npy", np.array([second, 1]))
        grey = np.full((2, 3), round(65_535 * second / 4), np.uint16)
        cv2.imwrite(str(folders["depth"] / f"frame_{row:03d}.png"), grey)


@pytest.fixture(scope="module", params=["even", "ntsc", "uneven"])
def clock_video(request, tmp_path_factory):
    seconds = {"even": EVEN, "ntsc": NTSC, "uneven": UNEVEN}[request.param]
    return write_clock(tmp_path_factory.mktemp("clock") / "a.mp4", seconds), seconds


@pytest.fixture(scope="module", params=[None, 50.0, 29.97, 24_000 / 1001, "meta"])
def clock_root(request, clock_video, tmp_path_factory):
    """(data folder, seconds between rows or 0 for one row per frame, the setting of music's rate)."""
    root = tmp_path_factory.mktemp("root")
    path, seconds = clock_video
    fps = 50.0 if request.param == "meta" else request.param
    write_guidance(root, seconds if fps is None else np.arange(round(3.5 * fps)) / fps, fps)
    if request.param == "meta":
        (root / "music_features" / "meta.json").write_text('{"fps": 50}')
    for folder in ("videos", "reference_images"):
        (root / folder).mkdir()
    (root / "videos" / "a.mp4").symlink_to(path)
    Image.new("RGB", (96, 64)).save(root / "reference_images" / "a.png")
    return root, 1 / fps if fps else 0.0, None if request.param == "meta" else fps


@pytest.mark.parametrize("stride", STRIDES)
def test_guidance_is_of_the_time_that_its_frame_shows(clock_root, stride):
    """Off by half a row at most, which is less than half a frame; exact where there is one row per frame."""
    root, row_seconds, music_feature_fps = clock_root
    dataset = GuidanceDataset(
        root, list(TYPES), list(TYPES.values()), resolution=(64, 96), sequence_length=12,
        frame_stride=stride, music_feature_fps=music_feature_fps,
    )  # fmt: skip
    tolerance = row_seconds / 2 + 0.0011  # frames show milliseconds
    for start in range(0, dataset.num_frames(0) - dataset.clip_span + 1, 8):
        item = dataset.read_clip(0, start)
        guidance = item["guidance"]
        shown = shown_seconds(item["frames"].movedim(1, -1))
        np.testing.assert_allclose(item["frame_seconds"], shown, atol=0.0011)
        beats = shown - guidance["music"][:, 0].numpy()
        assert np.abs(beats[:, None] - BEATS).min(1).max() < tolerance
        for name, told in (
            ("hands", 4 * guidance["hands"][:, 1, 0]),
            ("energy", guidance["energy"][:, 0]),
            ("depth", 4 * guidance["depth"][:, 0, 30, 40]),
        ):
            assert np.abs(told.numpy() - shown).max() < tolerance, name


# ---- sound ----

SOUNDED = {  # name: (file name, write_clock's keywords, clicks that come late by that much)
    "mp4": ("a.mp4", {}, 0),
    "mp4_late_sound": ("a.mp4", {"sound_late": 0.3}, 0.3),
    "mp4_early_sound": ("a.mp4", {"sound_late": -0.2}, -0.2),
    "mp4_late_frames": ("a.mp4", {"seconds": EVEN[:60] + 0.5}, 0),
    "mp4_both_late": ("a.mp4", {"seconds": EVEN[:60] + 0.25, "sound_late": 0.4}, 0.4),
    "mp4_uneven": ("a.mp4", {"seconds": UNEVEN}, 0),
    "mp4_no_edit_list": ("a.mp4", {"options": {"use_editlist": "0"}}, None),
    "mov_pcm": ("a.mov", {"codecs": ("libx264", "pcm_s16le"), "sound_late": 0.15}, 0.15),
    "mkv_late_sound": ("a.mkv", {"sound_late": 0.3}, 0.3),
    "mkv_early_sound": ("a.mkv", {"sound_late": -0.2}, -0.2),
    "webm": ("a.webm", {"codecs": ("libvpx", "libopus"), "sound_late": 0.1}, 0.1),
    "ts": ("a.ts", {}, 0),
    "ts_late_sound": ("a.ts", {"sound_late": 0.3, "seconds": UNEVEN}, 0.3),
    "ts_early_sound": ("a.ts", {"sound_late": -0.2}, -0.2),
    "avi_pcm": ("a.avi", {"codecs": ("mpeg4", "pcm_s16le")}, 0),
}


@pytest.mark.parametrize("name", SOUNDED)
def test_sound_is_on_the_clock_of_the_frames(tmp_path, name):
    """A click is heard when the frame is on screen that shows its time, wherever the file's clock begins."""
    file_name, keywords, late = SOUNDED[name]
    path = write_clock(tmp_path / file_name, **{"seconds": EVEN, **keywords})
    reader = VideoReader(path)
    begins_at = reader.frame_seconds - shown_seconds(reader.read(range(len(reader))))
    np.testing.assert_allclose(begins_at, begins_at[0], atol=0.0016)  # one clock for all frames
    heard = heard_clicks(path) - begins_at[0]
    expected = BEATS + (late or 0)
    expected = expected[expected + begins_at[0] > 0]
    if late is None:  # without an edit list a file cannot say that 1,024 samples of AAC are lead-in
        assert len(heard) == len(expected) and np.abs(heard - expected).max() < 0.5 / 24
    else:
        np.testing.assert_allclose(heard, expected, atol=CLICK_TOLERANCE)
    middle = float(reader.frame_seconds[20])  # a part that begins elsewhere is on the same clock
    part = heard_clicks(path, middle, 0.95) - begins_at[0]
    inside = (expected + begins_at[0] > middle) & (expected + begins_at[0] < middle + 0.95)
    np.testing.assert_allclose(part, heard[inside], atol=0.001)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_sound_with_a_hole_stays_on_the_clock(tmp_path, name):
    path = write_clock(tmp_path / name, EVEN, gap=(1.5, 0.4))
    zero = VideoReader(path).frame_seconds[0]
    expected = np.where(BEATS > 1.5, BEATS + 0.4, BEATS)
    np.testing.assert_allclose(heard_clicks(path) - zero, expected, atol=CLICK_TOLERANCE)
    assert not read_audio(path, zero + 1.6, 0.2)[0].any()


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.opus", "libopus"), ("a.flac", "flac"),
     ("a.wav", "pcm_s16le")],
)  # fmt: skip
def test_a_file_of_sound_begins_with_its_first_sample(tmp_path, name, codec):
    """As for the tools that extract music features; ffmpeg stamps an mp3's first sample 25 ms late."""
    with av.open(str(tmp_path / name), "w") as output:
        rate = 48_000 if codec == "libopus" else 44_100
        stream = output.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            (clicks(rate) * 32_767).astype(np.int16)[None], "s16", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(
            stream.codec_context.format.name, "mono", rate, frame_size=stream.codec_context.frame_size
        )
        for block in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(block))
        output.mux(stream.encode())
    np.testing.assert_allclose(heard_clicks(tmp_path / name), BEATS, atol=CLICK_TOLERANCE)


# ---- written videos ----


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("stated", ["rate", "times"])
def test_written_clips_keep_clicks_with_their_frames(clock_video, tmp_path, stride, stated):
    path, _ = clock_video
    reader = VideoReader(path)
    indices = np.arange(7, len(reader), stride)
    seconds = reader.frame_seconds[indices]
    gaps = np.diff(seconds)
    if stated == "rate" and gaps.max() - gaps.min() > 0.001:
        pytest.skip("a variable rate is stated by its times")
    frame_rate = seconds if stated == "times" else (len(indices) - 1) / (seconds[-1] - seconds[0])
    write_video(tmp_path / "clip.mp4", reader.read(indices), frame_rate, path, float(seconds[0]))

    clip = VideoReader(tmp_path / "clip.mp4")
    shown = shown_seconds(clip.read(range(len(clip))))
    np.testing.assert_allclose(clip.frame_seconds, seconds - seconds[0], atol=0.0005)
    np.testing.assert_allclose(shown, seconds, atol=0.0011)
    heard = heard_clicks(tmp_path / "clip.mp4")  # maybe one more, while the last frame is on screen
    expected = BEATS[(BEATS > seconds[0]) & (seconds[-1] > BEATS)]
    assert len(heard) >= len(expected) > 3
    for click, beat in zip(heard, expected, strict=False):
        on_screen = int(np.searchsorted(clip.frame_seconds, click, side="right")) - 1
        since_shown = click - clip.frame_seconds[on_screen]
        assert abs(shown[on_screen] + since_shown - beat) < CLICK_TOLERANCE < gaps.min() / 2


def test_times_of_written_frames_are_checked(tmp_path):
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    for seconds in ([0.0, 0.1], [0.0, 0.2, 0.1]):
        with pytest.raises(ValueError, match="3 ascending times expected"):
            write_video(tmp_path / "a.mp4", frames, np.array(seconds))


def test_frames_of_one_time_are_all_written(tmp_path):
    """As Matroska's rounding makes them of very high rates."""
    seconds = np.array([0, 0, 0.3, 0.5, 0.5, 0.5])
    write_video(tmp_path / "a.mp4", np.zeros((6, 64, 64, 3), np.uint8), seconds)
    np.testing.assert_allclose(VideoReader(tmp_path / "a.mp4").frame_seconds, seconds, atol=0.0005)


def test_beats_can_be_told_apart():
    """What the tests above rest on."""
    assert min(b - a for a, b in pairwise(BEATS)) > 0.4
    np.testing.assert_allclose(shown_seconds(np.stack([clock_frame(s) for s in UNEVEN])), UNEVEN, atol=1e-9)
