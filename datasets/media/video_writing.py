"""Writing clips: mp4 files that browsers play, frames at their times and sound with its frames."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from .sound import read_audio
from .tags import append_xmp, set_tags

AUDIO_BIT_RATE = 160_000
ROUNDED_SECONDS = 0.002  # an even rate's times are as even as this: Matroska rounds to milliseconds
TICK_SECONDS = Fraction(1, 90_000)  # of a variable rate's time stamps
BT709 = 1  # the code of BT.709 in colour matrix, primaries and transfer alike


def write_video(
    path: str | Path,
    frames: np.ndarray,
    frame_rate: float | Fraction | np.ndarray,
    audio_path: str | Path | None = None,
    audio_start_seconds: float = 0.0,
    *,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write an mp4 that browsers play: h264 and, with audio_path, the clip's share of its sound.

    frames: uint8 [F, H, W, 3], RGB; odd sizes are padded by repeating the last line. frame_rate: frames a
    second or, of a variable rate, the times of the frames in seconds [F], of which only the distances count.
    audio_path is any media file with sound; the clip's first frame belongs to audio_start_seconds of it.
    tags: title, comment and so on; those of `tags.generated_tags` say that the video is generated.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(f"frames must be uint8 [F, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    odd_height, odd_width = frames.shape[1] % 2, frames.shape[2] % 2  # h264 halves the colour planes
    frames = np.pad(frames, ((0, 0), (0, odd_height), (0, odd_width), (0, 0)), mode="edge")
    rate, time_base, pts = _frame_clock(frame_rate, len(frames))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as output:
        set_tags(output, tags)
        video = add_h264_stream(output, frames.shape[1:3], rate, time_base)
        if audio_path is not None:
            seconds = float(pts[-1] * time_base + 1 / rate)
            add_sound_stream(output, Path(audio_path), audio_start_seconds, seconds)
        to_yuv = VideoReformatter()
        for stamp, pixels in zip(pts, frames, strict=True):
            output.mux(video.encode(h264_frame(pixels, to_yuv, stamp, time_base)))
        output.mux(video.encode())
    append_xmp(path, tags)


def _frame_clock(
    frame_rate: float | Fraction | np.ndarray, num_frames: int
) -> tuple[Fraction, Fraction, list[int]]:
    """Return (frames per second, seconds per tick, ticks of each frame) of write_video's frame_rate."""
    if np.ndim(frame_rate):
        seconds = np.asarray(frame_rate, np.float64) - frame_rate[0]
        if len(seconds) != num_frames or np.any(np.diff(seconds) < 0):
            raise ValueError(f"{num_frames} ascending times expected, got {seconds.tolist()}")
        numbers, tick = np.arange(num_frames), float(TICK_SECONDS)
        frame_rate = numbers[-1] / max(seconds[-1], tick) if num_frames > 1 else 1.0
        if np.abs(seconds - numbers / frame_rate).max() > ROUNDED_SECONDS:
            pts = np.round(seconds / tick).astype(int)
            pts = np.maximum.accumulate(pts - numbers) + numbers  # of frames at one time, each a tick later
            return Fraction(frame_rate).limit_denominator(1001), TICK_SECONDS, pts.tolist()
    rate = Fraction(frame_rate).limit_denominator(1001)  # 23.976... is 24000/1001
    return rate, 1 / rate, list(range(num_frames))


def add_h264_stream(
    output, size: tuple[int, int], rate: Fraction, time_base: Fraction, *, options: dict | None = None
):
    """Return an h264 stream of frames of an even size (height, width), in h264_frame's colours."""
    options = {"crf": "18", "preset": "medium", **(options or {})}
    stream = output.add_stream("libx264", rate=rate, options=options)
    stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
    context = stream.codec_context
    context.time_base, context.color_range = time_base, ColorRange.MPEG
    context.colorspace = context.color_primaries = context.color_trc = BT709
    return stream


def h264_frame(pixels: np.ndarray, to_yuv: VideoReformatter, pts: int, time_base: Fraction) -> av.VideoFrame:
    """Return a frame to encode, of pixels uint8 [H, W, 3], RGB."""
    frame = to_yuv.reformat(
        av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"),
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        dst_color_range=ColorRange.MPEG,
        threads=1,
    )
    frame.pts, frame.time_base = pts, time_base
    return frame


def add_sound_stream(
    output, path: Path, start_seconds: float, duration_seconds: float, *, bit_rate: int = AUDIO_BIT_RATE
) -> None:
    """Add an AAC stream with start_seconds to start_seconds + duration_seconds of a file's sound."""
    samples, sample_rate = read_audio(path, start_seconds, duration_seconds)
    layout = "mono" if samples.shape[0] == 1 else "stereo"
    stream = output.add_stream("aac", rate=sample_rate, layout=layout, bit_rate=bit_rate)
    fifo = av.AudioFifo()
    for first in range(0, samples.shape[1], sample_rate):  # a second at a time: one copy of it all is enough
        second = np.ascontiguousarray(samples[:, first : first + sample_rate])
        frame = av.AudioFrame.from_ndarray(second, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, first, Fraction(1, sample_rate)
        fifo.write(frame)
        is_last = first + sample_rate >= samples.shape[1]
        while (block := fifo.read(stream.codec_context.frame_size or 1024, partial=is_last)) is not None:
            output.mux(stream.encode(block))
    output.mux(stream.encode())
