import pytest
import torch

from datasets.guidance.openpose import FACE as FACE_POINTS
from models.music_to_pose.representation import KEY_POINT_COUNTS, SCALE, PoseRepresentation, fill_gaps
from system.errors import UserError


@pytest.mark.parametrize("num_key_points", KEY_POINT_COUNTS)
def test_decoding_undoes_encoding(dance, num_key_points):
    track, reference = (points[..., :num_key_points, :] for points in dance)
    representation = PoseRepresentation(num_key_points, 10)
    values, weights = representation.encode(track[None], reference[None])
    assert values.shape == weights.shape == (1, 16, representation.num_values)
    assert representation.encode_reference(reference[None]).shape == (1, representation.num_reference_values)
    assert (weights == 1).all()
    decoded = representation.decode(values, reference[None])[0]
    torch.testing.assert_close(decoded, track, atol=1e-5, rtol=0)


def test_size_and_place_are_numbers_of_their_own(dance):
    track, reference = (points[..., :18, :] for points in dance)
    representation = PoseRepresentation(18, 10)
    values, _ = representation.encode(track[None], reference[None])
    moved = track * torch.tensor([1.5, 1.5, 1]) + torch.tensor([0.2, -0.1, 0])
    larger, _ = representation.encode(moved[None], reference[None])
    torch.testing.assert_close(larger[..., SCALE] - values[..., SCALE], torch.full((1, 16), 1.5).log())
    torch.testing.assert_close(larger[..., 3:], values[..., 3:])
    of_larger, _ = representation.encode(moved[None], (reference * torch.tensor([1.5, 1.5, 1]))[None])
    torch.testing.assert_close(of_larger[..., 2:], values[..., 2:])


def test_absent_points_weigh_nothing_and_are_interpolated(dance):
    track, reference = (points[..., :18, :].clone() for points in dance)
    representation = PoseRepresentation(18, 10)
    whole, _ = representation.encode(track[None], reference[None])
    track[5:8, 3] = 0  # right elbow: its own bone and the wrist's
    values, weights = representation.encode(track[None], reference[None])
    lost = (weights == 0)[0].nonzero()
    columns = representation.columns_of([3, 4]).nonzero()[:, 0]
    assert lost[:, 0].unique().tolist() == [5, 6, 7]
    assert lost[:, 1].unique().tolist() == columns.tolist()
    expected = whole[0, 4, columns] + 0.5 * (whole[0, 8, columns] - whole[0, 4, columns])
    torch.testing.assert_close(values[0, 6, columns], expected)


def test_what_the_reference_lacks_is_absent(dance):
    track, reference = (points.clone() for points in dance)
    representation = PoseRepresentation(134, 10)
    values, _ = representation.encode(track[None], reference[None])
    reference[[16, 17, 30, 120]] = 0
    decoded = representation.decode(values, reference[None])[0]
    assert (decoded[:, [16, 17, 30, 120]] == 0).all()
    face = decoded[:, FACE_POINTS]  # by nose and eyes alone
    torch.testing.assert_close(face[:, 20], track[:, 24 + 20], atol=1e-5, rtol=0)
    reference[[0, 14, 15]] = 0
    assert (representation.decode(values, reference[None])[0, :, FACE_POINTS] == 0).all()


@pytest.mark.parametrize("point", [1, 8, 11])
def test_a_reference_without_torso_is_an_error(dance, point):
    track, reference = (points[..., :18, :].clone() for points in dance)
    reference[point] = 0
    with pytest.raises(UserError, match="lacks the neck or a hip"):
        PoseRepresentation(18).encode(track[None], reference[None])


def test_other_numbers_of_points_are_an_error():
    with pytest.raises(UserError, match="17 key points are of an unknown order; expected one of 18, 24"):
        PoseRepresentation(17)


def test_gaps():
    values = torch.tensor([[9.0, 2, 9, 9, 8, 9]])[..., None]
    is_there = torch.tensor([[0, 1, 0, 0, 1, 0]])[..., None] > 0
    assert fill_gaps(values, is_there)[0, :, 0].tolist() == [2, 2, 4, 6, 8, 8]
    assert not fill_gaps(values, is_there & False).any()
