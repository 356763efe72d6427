"""The picture of the first batch shows what was encoded."""

import numpy as np
import pytest
import torch
from PIL import Image

from models import FrozenEncoders
from training.validation.first_batch import MAX_CLIPS, lit, show_first_batch


class Log:
    def __init__(self):
        self.lines, self.pictures = [], {}

    def say(self, line):
        self.lines.append(line)

    def moving_image(self, name, gif, size, step):
        self.pictures[name] = (gif, size, step)


@pytest.mark.parametrize(("num_frames", "file_name"), [(3, "first_batch.gif"), (1, "first_batch.png")])
def test_first_batch_is_written_and_logged(tiny_base, tmp_path, num_frames, file_name):
    frozen = FrozenEncoders.from_pretrained(tiny_base)
    frames = torch.rand(MAX_CLIPS + 1, num_frames, 3, 64, 64) * 2 - 1
    latents = frozen.encode_frames(frames)
    conditions = {
        "reference_latents": frozen.encode_reference(frames[:, 0]),
        "guidance": {
            "music": torch.rand(len(frames), num_frames, 35),
            "pose": torch.rand(len(frames), num_frames, 134, 3),
        },
    }
    log = Log()
    names = [f"dance_{number}" for number in range(len(frames))]
    show_first_batch(frozen, latents, conditions, names, tmp_path, log)
    gif, size, _ = log.pictures["train/first_batch"]
    picture = Image.open(tmp_path / "samples" / file_name)
    assert gif[:3] == b"GIF" and picture.size == size[::-1]
    assert getattr(picture, "n_frames", 1) == num_frames
    assert size[0] > MAX_CLIPS * 64 and size[1] >= 4 * 64  # one row per clip; reference, two types, frames
    assert "dance_3" in log.lines[0] and "dance_4" not in log.lines[0]
    if num_frames == 1:  # the last column is the frames, as the VAE gives them back
        shown = np.asarray(picture)[-64:, -64:].astype(int)
        decoded = frozen.decode_frames(latents[MAX_CLIPS - 1 : MAX_CLIPS])[0, 0].permute(1, 2, 0)
        assert np.abs(shown - ((decoded.numpy() + 1) * 127.5)).max() <= 1


def test_the_weights_of_the_loss_are_seen():
    frames = np.full((2, 16, 16, 3), 200, np.uint8)
    weights = torch.ones(2, 1, 2, 2)
    weights[1, 0, 0, 1] = 4.0
    shown = lit(frames, weights)
    assert shown.shape == frames.shape and (shown[1, :8, 8:] == 200).all()
    assert (shown[0] == 80).all() and (shown[1, 8:] == 80).all()  # a quarter of the weight
    assert (lit(frames, torch.ones(2, 1, 2, 2)) == 200).all()
