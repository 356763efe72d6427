"""Windows over long clips: every frame covered, neighbours share frames, no window too long."""

import pytest
import torch

from pipelines.context_windows import context_windows, frame_weights


@pytest.mark.parametrize("overlap", [0, 1, 4, 15])
@pytest.mark.parametrize("num_frames", [1, 15, 16, 17, 31, 32, 33, 100])
def test_windows_cover_the_clip(num_frames, overlap):
    windows = context_windows(num_frames, 16, overlap)
    assert windows[0].start == 0 and windows[-1].stop == num_frames
    assert all(window.stop - window.start == min(16, num_frames) for window in windows)
    for earlier, later in zip(windows, windows[1:], strict=False):
        assert later.start > earlier.start
        assert earlier.stop - later.start >= overlap


def test_weights_rise_over_the_overlap_and_fall_again():
    assert frame_weights(8, 2).tolist() == [1, 2, 3, 3, 3, 3, 2, 1]
    assert frame_weights(4, 0).tolist() == [1, 1, 1, 1]
    assert frame_weights(3, 2).min() > 0
    assert torch.equal(frame_weights(1, 0), torch.ones(1))
