"""Windows over long clips: every frame covered, neighbours share frames, no window too long."""

import pytest
import torch

from pipelines.context_windows import (
    WindowGrid,
    context_windows,
    draw_shared_noise,
    frame_weights,
    make_grids,
)


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


@pytest.mark.parametrize("overlap", [0, 1, 4, 15])
@pytest.mark.parametrize("num_frames", [1, 16, 17, 18, 31, 33, 64])
def test_a_second_grid_covers_the_clip_too(num_frames, overlap):
    one, two = make_grids(num_frames, 16, overlap, num_grids=2)
    assert [one] == make_grids(num_frames, 16, overlap) == [WindowGrid(one.windows, overlap)]
    assert one.windows == context_windows(num_frames, 16, overlap)
    covered = {frame for window in two.windows for frame in range(window.start, window.stop)}
    assert covered == set(range(num_frames))
    assert all(window.stop - window.start == min(16, num_frames) for window in two.windows)
    assert all(
        later.start > earlier.start for earlier, later in zip(two.windows, two.windows[1:], strict=False)
    )


def leaving(grid: WindowGrid, num_frames: int) -> torch.Tensor:
    """The share of each frame's prediction that comes of windows without the next frame, or the other way."""
    shares, total = torch.zeros(2, num_frames - 1), torch.zeros(num_frames)
    for window in grid.windows:
        weights = frame_weights(window.stop - window.start, grid.fade)
        total[window] += weights
        if window.stop < num_frames:
            shares[0, window.stop - 1] += weights[-1]
        if window.start > 0:
            shares[1, window.start - 1] += weights[0]
    return torch.maximum(shares[0] / total[:-1], shares[1] / total[1:])


@pytest.mark.parametrize("num_frames", range(40, 140, 3))
def test_no_frame_is_always_at_an_edge(num_frames):
    one, two = (leaving(grid, num_frames) for grid in make_grids(num_frames, 24, 4, num_grids=2))
    assert one.max() > 0.15
    assert torch.minimum(one, two).max() < 0.1


def test_shared_noise_is_shuffled_along_the_clip():
    shape, (grid,) = (2, 30, 4, 2, 2), make_grids(30, 8, 2)
    noise = draw_shared_noise(shape, grid, torch.Generator().manual_seed(3), torch.device("cpu"))
    first = torch.randn(2, 8, 4, 2, 2, generator=torch.Generator().manual_seed(3))
    assert torch.equal(noise[:, :8], first)
    orders = []
    for start in range(8, 30, 6):
        earlier, stretch = noise[0, start - 8 : start - 2], noise[0, start : start + 6]
        order = [int((earlier == frame).flatten(1).all(1).nonzero()) for frame in stretch]
        assert len(set(order)) == len(stretch)  # each at most once
        orders.append(order)
    assert any(order != sorted(order) for order in orders)
    again = draw_shared_noise(shape, grid, torch.Generator().manual_seed(3), torch.device("cpu"))
    assert torch.equal(noise, again)


def test_shared_noise_of_a_clip_does_not_depend_on_the_others():
    (grid,), device = make_grids(30, 8, 2), torch.device("cpu")
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    both = draw_shared_noise((2, 30, 4, 2, 2), grid, generators, device)
    alone = draw_shared_noise((1, 30, 4, 2, 2), grid, [torch.Generator().manual_seed(4)], device)
    assert torch.equal(both[1:], alone)
