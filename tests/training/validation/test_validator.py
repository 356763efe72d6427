"""Fixed clips, their videos, and gaps that tell which guidance a model listens to."""

import wave
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datasets import VideoReader, write_video
from training.validation.validator import Validator, choose_clips, save_video, summary_line


@pytest.mark.parametrize(
    ("num_frames", "num_clips", "expected"),
    [
        ([20, 20, 20], 3, [(0, 6), (1, 6), (2, 6)]),  # the middle of each video
        ([20, 20, 20, 20], 2, [(0, 6), (2, 6)]),  # spread over the videos
        ([20], 3, [(0, 0), (0, 6), (0, 12)]),  # spread over the one video
        ([8], 3, [(0, 0)]),  # there is one clip
        ([20, 8], 4, [(0, 0), (1, 0), (0, 12)]),
    ],
)
def test_clips_are_fixed_and_far_apart(num_frames, num_clips, expected):
    dataset = SimpleNamespace(clip_span=8, num_frames=lambda index: num_frames[index])
    assert choose_clips(dataset, range(len(num_frames)), num_clips) == expected


def test_a_shown_clip_of_a_variable_rate_keeps_its_times(tmp_path, monkeypatch):
    """Written at an even rate, its frames would drift away from their sound."""
    seconds, written = [2.0, 2.1, 2.13, 2.3], []
    validator = Validator.__new__(Validator)
    validator.shown = {"frame_seconds": torch.tensor(seconds, dtype=torch.float64), "sample_id": "a"}
    save = lambda path, frames, *sound: written.append((path.name, *sound))  # noqa: E731
    monkeypatch.setattr("training.validation.validator.save_video", save)
    validator.video_path = "videos/a.mp4"
    log = SimpleNamespace(moving_image=lambda *_: None)
    validator.show(np.zeros((4, 8, 8, 3), np.uint8), tmp_path, log, step=1)
    assert written == [("a.mp4", seconds, "videos/a.mp4", 2.0)]


def test_summary():
    scalars = {
        "val_loss": 0.25,
        "val_loss/t000-249": 1.0,
        "guidance_gap/pose": 0.5,
        "guidance_gap_alone/pose": -0.1,
    }
    assert summary_line(scalars, 7) == "step 7: val_loss 0.2500, gap/pose +50%, gap_alone/pose -10%"


def test_a_video_whose_sound_ends_early_is_saved_without(tmp_path):
    frames = np.zeros((8, 64, 64, 3), np.uint8)
    sound = tmp_path / "sound.wav"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000)
        file.writeframes(bytes(8000))  # half a second
    write_video(tmp_path / "dance.mp4", np.repeat(frames, 5, 0), 8, sound)
    said = save_video(tmp_path / "clip.mp4", frames, np.arange(8) / 8, tmp_path / "dance.mp4", 3.0)
    assert "clip.mp4 is without sound" in said and "dance.mp4" in said
    assert len(VideoReader(tmp_path / "clip.mp4")) == 8


def test_a_weighted_region_that_no_clip_shows_is_told():
    points = torch.zeros(1, 1, 134, 3)
    points[..., 24:92, :] = torch.tensor([0.6, 0.3, 1.0])
    validator = Validator.__new__(Validator)
    validator.encoded = [SimpleNamespace(guidance={"pose": points}, latents=torch.zeros(1, 1, 4, 4, 4))]
    validator.regions = ["hands", "face"]
    (line,) = validator.unseen_regions()
    assert (
        "--region_weights hands: no validation clip shows the hands (5 key points of confidence 0.3" in line
    )
    validator.regions = []
    assert validator.unseen_regions() == []
