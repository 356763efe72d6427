"""Frames and their times against videos whose every frame shows its number."""

import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from datasets import DataError, VideoReader, write_video
from datasets.media.sound import read_audio

NUM_FRAMES = 50
UNEVEN = np.cumsum([1 + (7 * k) % 5 for k in range(NUM_FRAMES)]) - 1  # milliseconds x 10 between 1 and 5

DIFFICULT = {  # name: (file name, write_numbered's keywords, tolerance of the times in seconds)
    "b_frames_long_gop": ("a.mp4", {"options": {"bf": "3", "g": "250"}}, 1e-9),
    "short_gop": ("a.mp4", {"options": {"bf": "2", "g": "3"}}, 1e-9),
    "open_gop": ("a.mp4", {"options": {"bf": "3", "g": "8", "x264-params": "open-gop=1"}}, 1e-9),
    "no_b_frames": ("a.mp4", {"options": {"bf": "0"}}, 1e-9),
    "hevc_open_gop": (
        "a.mp4",
        {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=10"}},
        1e-9,
    ),
    "variable_rate": ("a.mp4", {"pts": UNEVEN, "time_base": Fraction(1, 100), "options": {"bf": "3"}}, 1e-9),
    "variable_rate_mkv": ("a.mkv", {"pts": UNEVEN, "time_base": Fraction(1, 100)}, 6e-4),
    "ntsc_rate": (
        "a.mp4",
        {"pts": 1001 * np.arange(NUM_FRAMES), "time_base": Fraction(1, 24_000), "options": {"bf": "3"}},
        1e-9,
    ),
    "late_start_mkv": ("a.mkv", {"pts": np.arange(NUM_FRAMES) + 9, "options": {"bf": "3"}}, 6e-4),
    "late_start": ("a.mp4", {"pts": np.arange(NUM_FRAMES) + 9, "options": {"bf": "3"}}, 1e-9),
    "no_edit_list": ("a.mp4", {"options": {"bf": "0"}, "container_options": {"use_editlist": "0"}}, 1e-9),
    "mov": ("a.MOV", {"options": {"bf": "3"}}, 1e-9),
    "mkv": ("a.mkv", {"options": {"bf": "3", "g": "10"}}, 6e-4),
    "webm_vp9": ("a.webm", {"codec": "libvpx-vp9", "options": {"deadline": "realtime"}}, 6e-4),
    "webm_vp8_hidden_frames": ("a.webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1"}}, 6e-4),
    "avi_b_frames": ("a.avi", {"options": {"bf": "3"}}, 1e-9),
    "avi_mpeg4": ("a.avi", {"codec": "mpeg4"}, 1e-9),
    "avi_mjpeg": ("a.avi", {"codec": "mjpeg"}, 1e-9),
    "fragmented": (
        "a.mp4",
        {"options": {"bf": "0", "g": "10"}, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
        1e-9,
    ),
    # Matroska rounds to milliseconds: some frames get the time of the frame before.
    "repeated_times": ("a.mkv", {"pts": 6 * np.arange(NUM_FRAMES), "time_base": Fraction(1, 10_000)}, 6e-4),
    "transport_stream": ("a.ts.mp4", None, 2e-5),
}


@pytest.fixture(scope="module", params=DIFFICULT)
def difficult(request, tmp_path_factory, write_numbered):
    """(reader, true frame times, tolerance) of each difficult video."""
    name, keywords, tolerance = DIFFICULT[request.param]
    path = tmp_path_factory.mktemp("videos") / name
    if keywords is None:
        write_numbered(path.with_suffix(".ts"), NUM_FRAMES, options={"bf": "3"}).rename(path)
        keywords = {}
    else:
        write_numbered(path, NUM_FRAMES, **keywords)
    pts = np.asarray(keywords.get("pts", np.arange(NUM_FRAMES)))
    return VideoReader(path), pts * float(keywords.get("time_base", Fraction(1, 12))), tolerance


def test_times_are_exact(difficult):
    reader, seconds, tolerance = difficult
    assert len(reader) == NUM_FRAMES
    np.testing.assert_allclose(reader.frame_seconds, seconds, rtol=0, atol=tolerance)


def test_every_frame_alone_is_the_right_one(difficult, read_number):
    reader, *_ = difficult
    assert [read_number(reader.read([index])[0]) for index in range(0, NUM_FRAMES, 3)] == [
        *range(0, NUM_FRAMES, 3)
    ]


@pytest.mark.parametrize("indices", [[0, 49], [49, 0], [7, 7, 8], [3, 4, 5, 30, 31], [*range(10, 40, 3)]])
def test_frames_come_in_the_order_asked_for(difficult, read_number, indices):
    reader, *_ = difficult
    frames = reader.read(indices)
    assert frames.shape == (len(indices), 64, 64, 3) and frames.dtype == np.uint8
    assert [read_number(frame) for frame in frames] == indices


def test_iterating_gives_all_frames(difficult, read_number):
    reader, *_ = difficult
    assert [read_number(frame) for frame in reader.iterate()] == list(range(NUM_FRAMES))


def test_edit_list_hides_frames(tmp_path, write_numbered, read_number):
    """The file's edit list is moved on by 10 frames: frame 10 becomes the first, at 0 s."""
    path = write_numbered(tmp_path / "a.mp4", NUM_FRAMES, options={"bf": "3", "g": "25"})
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 4
    version_flags, count, duration, media_time = struct.unpack_from(">IIIi", content, place)
    assert (version_flags, count) == (0, 1)
    with av.open(str(path)) as container:
        ticks_a_frame = round(Fraction(1, 12) / container.streams.video[0].time_base)
    duration = duration * (NUM_FRAMES - 10) // NUM_FRAMES
    struct.pack_into(">Ii", content, place + 8, duration, media_time + 10 * ticks_a_frame)
    path.write_bytes(content)

    reader = VideoReader(path)
    assert len(reader) == NUM_FRAMES - 10
    np.testing.assert_allclose(reader.frame_seconds, np.arange(NUM_FRAMES - 10) / 12, atol=1e-9)
    assert [read_number(frame) for frame in reader.read([0, 5, 39, 20])] == [10, 15, 49, 30]
    assert [read_number(frame) for frame in reader.iterate()] == list(range(10, NUM_FRAMES))


# QuickTime's display matrix (a, b, c, d): x' = a x + c y, y' = b x + d y, with y downwards.
TURNS = {1: (0, -1, 1, 0), 2: (-1, 0, 0, -1), 3: (0, 1, -1, 0)}  # by quarter turns counterclockwise


@pytest.mark.parametrize("quarter_turns", TURNS)
def test_rotation_is_honoured(tmp_path, quarter_turns):
    stored = np.zeros((1, 64, 96, 3), np.uint8)
    stored[:, :20, :30] = 255
    write_video(tmp_path / "a.mp4", stored, 12)
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    a, b, c, d = (value << 16 for value in TURNS[quarter_turns])
    struct.pack_into(">9i", content, content.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(content)

    reader = VideoReader(tmp_path / "a.mp4")
    shown = np.rot90(stored[0], quarter_turns)
    assert reader.size == shown.shape[:2]
    assert np.abs(reader.read([0])[0].astype(int) - shown).mean() < 5


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.ts", "libx264"),
     ("a.avi", "mpeg4"), ("a.webm", "libvpx")],
)  # fmt: skip
def test_a_video_of_one_frame(tmp_path, write_numbered, read_number, name, codec):
    reader = VideoReader(write_numbered(tmp_path / name, 1, codec=codec))
    assert len(reader) == 1 and reader.frame_seconds.tolist() == [0.0] and reader.frame_rate > 0
    assert [read_number(frame) for frame in (*reader.read([0]), *reader.iterate())] == [0, 0]


def test_frames_are_changed_one_by_one(tmp_path, write_numbered, read_number):
    """One that is asked for twice is changed once, and order is kept."""
    reader = VideoReader(write_numbered(tmp_path / "a.mp4", 20))
    seen = []
    halved = reader.read([9, 3, 9], lambda frame: (seen.append(read_number(frame)), frame[:, ::2])[1])
    assert halved.shape == (3, 64, 32, 3) and seen == [3, 9]
    assert [read_number(frame) for frame in halved] == [9, 3, 9]


def test_index_outside_the_video(tmp_path, write_numbered):
    reader = VideoReader(write_numbered(tmp_path / "a.mp4", 5))
    for indices in ([5], [-1], []):
        with pytest.raises(IndexError):
            reader.read(indices)


# ---- damaged files ----


# Of a Matroska file's last second nothing tells what is missing; the number of poses does.
@pytest.mark.parametrize(
    ("suffix", "share"), [(".mp4", 0.02), (".mp4", 0.4), (".mp4", 0.98), (".mkv", 0.02), (".mkv", 0.4)]
)
def test_cut_off_file_is_named(tmp_path, share, suffix, write_numbered):
    path = tmp_path / f"a{suffix}"
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    write_numbered(path, 250, options={"g": "12", "qp": "1"}, container_options=options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    problems = "cut off|cannot be decoded|not a readable video|no video stream"
    with pytest.raises(DataError, match=rf"a{suffix}: .*({problems})"):
        VideoReader(path).read([200])


def test_undecodable_frame_is_named_and_others_are_read(tmp_path, write_numbered, read_number):
    path = write_numbered(tmp_path / "a.mp4", 60, options={"g": "10", "bf": "0"})
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[30:36]:
        content[position : position + size] = bytes(size)
    path.write_bytes(content)
    reader = VideoReader(path)
    assert read_number(reader.read([5])[0]) == 5
    with pytest.raises(DataError, match=r"a\.mp4: frame 31 \(at 2\.583 s of 4\.917 s\) cannot be decoded"):
        reader.read([5, 31])
    with pytest.raises(DataError, match="frame 30 "):
        list(reader.iterate())


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "not a readable video"), (b"hello " * 100, "not a readable video"), (None, "no such video file")],
)
def test_not_a_video(tmp_path, content, problem):
    path = tmp_path / "춤 하나.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=f"춤 하나.mp4: .*{problem}"):
        VideoReader(path)


def test_folder_and_sound_are_not_videos(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        VideoReader(tmp_path)
    write_click(tmp_path / "a.wav", 0.5)
    with pytest.raises(DataError, match="has no video stream"):
        VideoReader(tmp_path / "a.wav")


# ---- writing ----


def write_click(path, click_seconds, *, seconds=4.0, rate=22_050):
    """A mono wave file with a short burst of noise at one time."""
    samples = np.zeros(int(seconds * rate))
    start = int(click_seconds * rate)
    samples[start : start + 200] = np.random.default_rng(0).uniform(-1, 1, 200)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((20_000 * samples).astype("<i2").tobytes())


@pytest.fixture
def moving():
    """uint8 [24, 62, 66, 3], smooth so that compression is not what a test measures."""
    x, y, frame = np.meshgrid(np.arange(66), np.arange(62), np.arange(24), indexing="xy")
    colour = np.stack([3 * x + frame, 4 * y, 255 - 2 * x - 4 * frame], -1)
    return np.moveaxis(np.clip(colour, 0, 255), 2, 0).astype(np.uint8)


@pytest.mark.parametrize("rate", [12, 24000 / 1001, Fraction(25, 2)])
def test_written_frames_and_rate_are_read_back(tmp_path, moving, rate):
    path = tmp_path / "new folder" / "a.mp4"
    write_video(path, moving, rate)
    reader = VideoReader(path)
    assert len(reader) == 24 and reader.size == (62, 66) and not reader.has_audio
    exact = Fraction(rate).limit_denominator(1001)
    np.testing.assert_allclose(reader.frame_seconds, np.arange(24) / float(exact), atol=1e-9)
    assert np.abs(reader.read(range(24)).astype(int) - moving).mean() < 3


def test_written_file_plays_in_browsers(tmp_path, moving):
    path = tmp_path / "a.mp4"
    write_video(path, moving, 12)
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # playable while it loads
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.colorspace) == ("h264", "yuv420p", 1)


def test_colours_survive(tmp_path):
    colours = np.array([[230, 20, 20], [20, 220, 30], [30, 40, 210], [200, 180, 40]], np.uint8)
    frames = np.repeat(np.repeat(colours[None, None], 32, 2).reshape(1, 1, 128, 3), 64, 1)
    write_video(tmp_path / "a.mp4", frames, 12)
    read = VideoReader(tmp_path / "a.mp4").read([0])[0]
    np.testing.assert_allclose(read[32, 16::32], colours, atol=6)


def test_odd_sizes_are_padded(tmp_path, moving):
    write_video(tmp_path / "a.mp4", moving[:, :61, :65], 12)
    assert VideoReader(tmp_path / "a.mp4").size == (62, 66)


@pytest.mark.parametrize(
    "frames", [np.zeros((4, 8, 8, 3)), np.zeros((0, 8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8)]
)
def test_wrong_frames_are_refused(tmp_path, frames):
    with pytest.raises(ValueError, match=r"uint8 \[F, H, W, 3\]"):
        write_video(tmp_path / "a.mp4", frames, 12)


@pytest.mark.parametrize("source", ["wav", "mp4"])
def test_sound_is_cut_to_the_clip(tmp_path, moving, source):
    """A click at 2.5 s is heard 1 s into a clip from 1.5 s on, and the sound is as long as the clip."""
    write_click(tmp_path / "click.wav", 2.5)
    audio_path = tmp_path / "click.wav"
    if source == "mp4":
        long = np.repeat(moving[:1], 48, 0)
        write_video(tmp_path / "long.mp4", long, 12, audio_path)
        audio_path = tmp_path / "long.mp4"
    write_video(tmp_path / "clip.mp4", moving, 12, audio_path, 1.5)

    assert VideoReader(tmp_path / "clip.mp4").has_audio
    sound, rate = read_audio(tmp_path / "clip.mp4", 0.0, 10.0)
    assert sound.shape[1] / rate == pytest.approx(2.0, abs=0.03)
    loud = np.flatnonzero(np.abs(sound[0]) > 0.1)
    assert loud[0] / rate == pytest.approx(1.0, abs=0.005)


def test_sound_may_start_late_or_end_early(tmp_path, moving):
    write_click(tmp_path / "click.wav", 0.5, seconds=1.0)
    sound, rate = read_audio(tmp_path / "click.wav", -0.25, 1.0)
    assert np.flatnonzero(np.abs(sound[0]) > 0.05)[0] / rate == pytest.approx(0.75, abs=0.002)
    write_video(tmp_path / "a.mp4", moving, 12, tmp_path / "click.wav", 0.5)
    assert len(VideoReader(tmp_path / "a.mp4")) == 24


def test_missing_sound_is_named(tmp_path, moving):
    write_video(tmp_path / "silent.mp4", moving, 12)
    for path, problem in (("silent.mp4", "has no sound"), ("none.wav", "no such sound file")):
        with pytest.raises(DataError, match=f"{path}.*{problem}"):
            write_video(tmp_path / "a.mp4", moving, 12, tmp_path / path)
    write_click(tmp_path / "click.wav", 0.5, seconds=1.0)
    with pytest.raises(DataError, match=r"no sound at 3\.00 s"):
        write_video(tmp_path / "a.mp4", moving, 12, tmp_path / "click.wav", 3.0)


def test_sound_that_only_a_phone_can_decode_is_passed_over(tmp_path):
    """Spatial audio (apac) of newer phones, beside ordinary sound or alone."""

    def write(name: str, num_sounds: int) -> Path:
        with av.open(str(tmp_path / name), "w", format="mov") as output:
            video = output.add_stream("libx264", rate=12, width=64, height=64, pix_fmt="yuv420p")
            sounds = [output.add_stream("pcm_s16le", rate=48_000, layout="mono") for _ in range(num_sounds)]
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            output.mux([*video.encode(frame), *video.encode()])
            for level, sound in enumerate(sounds, start=1):
                samples = np.full((1, 4800), 8192 * level, np.int16)
                block = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                block.sample_rate, block.pts = 48_000, 0
                output.mux([*sound.encode(block), *sound.encode()])
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content.replace(b"sowt", b"apac", 1))  # the first sound's codec
        return tmp_path / name

    both, alone = write("both.mov", 2), write("alone.mov", 1)
    assert VideoReader(both).has_audio and not VideoReader(alone).has_audio
    assert read_audio(both, 0, 0.1)[0][0, 1000] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(DataError, match="has no sound that can be read: its codec is unknown"):
        read_audio(alone, 0, 0.1)
