import pytest
import torch

from models.music_to_pose import sampling
from models.music_to_pose.sampling import fade_shares, fit_to, make_sampler, sample_track, window_starts


@pytest.fixture
def sample(make_model, dance):
    """Samples a track with a small model."""
    model = make_model()
    torch.manual_seed(3)
    music = torch.randn(30, 14)

    def run(num_frames=30, seed=0, **options):
        generator = torch.Generator().manual_seed(seed)
        options = {"num_inference_steps": 3, "generator": generator} | options
        return sample_track(model, make_sampler(), music[:num_frames], dance[1][:18], **options)

    return run


@pytest.mark.parametrize("num_frames", [1, 3, 8, 9, 30])
def test_songs_of_any_length(sample, num_frames):
    track = sample(num_frames)
    assert track.shape == (1, num_frames, 37)
    assert track.isfinite().all()


def test_windows_cover_the_song():
    assert window_starts(8, 8) == [0]
    assert window_starts(9, 8) == [0, 1]
    assert window_starts(20, 8) == [0, 4, 8, 12]
    assert window_starts(1, 1) == [0]


def test_seeds_and_tracks(sample):
    two = sample(num_tracks=2)
    torch.testing.assert_close(sample(), two[:1])
    assert not torch.allclose(two[0], two[1], atol=1e-2)
    assert not torch.allclose(sample(seed=1), two[:1], atol=1e-2)


def test_parts_of_a_song_do_not_change_it(sample, monkeypatch):
    whole = sample()
    monkeypatch.setattr(sampling, "WINDOWS_AT_ONCE", 2)
    torch.testing.assert_close(sample(), whole)


def test_guidance(sample):
    assert not torch.allclose(sample(guidance_scale=2.0), sample(), atol=1e-4)


def test_known_values_stay(sample):
    values, mask = torch.full((30, 37), 0.5), torch.zeros(30, 37, dtype=torch.bool)
    mask[10:15] = True
    mask[:, 3:5] = True
    track = sample(known=(values, mask))[0]
    torch.testing.assert_close(track[mask], values[mask], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(track[~mask], sample()[0][~mask], atol=1e-4)


def test_a_dance_leans_to_what_is_kept_and_moves_on():
    own = torch.arange(12.0)[None, :, None].repeat(1, 1, 5)  # [T, N, P]: root, size, one bone
    own[..., 3:] = torch.tensor([0.0, 1.0])  # down
    known = torch.full((12, 5), 9.0)
    known[:, 3:] = torch.tensor([2.0, 0.0])  # to the side, twice as long
    mask = torch.zeros(12, 5, dtype=torch.bool)
    mask[5:7] = True
    shares = fade_shares(mask, frame_rate=10.0)  # a quarter of a second either side
    track = fit_to(own, known, mask, shares)[0]
    torch.testing.assert_close(track[5:7], known[5:7])
    torch.testing.assert_close(track[4:8, 0] - own[0, 4:8, 0], torch.tensor([8 / 3, 4, 3, 2]))
    torch.testing.assert_close(track[[0, 1, 2, 9, 10, 11]], own[0, [0, 1, 2, 9, 10, 11]])
    lengths = track[3:5, 3:].norm(dim=-1)
    torch.testing.assert_close(lengths, torch.tensor([4 / 3, 5 / 3]))


def test_callback(sample):
    steps = []
    sample(8, callback=lambda step, num_steps: steps.append((step, num_steps)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
