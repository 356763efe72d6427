"""Key points as the numbers that a dance is made of: where the dancer is, how large, and each bone.

P numbers per frame: the neck's way from the reference's neck (x, y), the log of the size, and per point its
offset from its parent, all in torso lengths of the reference. So proportions and framing are the reference's,
and what is learned is the dance. The face is rigid: the head carries it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from system.errors import UserError

NECK, HIPS, HEAD, FEET = 1, (8, 11), (0, 14, 15, 16, 17), (10, 13, *range(18, 24))
FACE, HANDS = range(24, 92), range(92, 134)
KEY_POINT_COUNTS = (18, 24, 92, 134)
ROOT = slice(0, 2)
SCALE = 2  # column of the log of the size
NUM_ROOT_COLUMNS = 3
# In the loss: the root moves all points, and 42 of 65 offsets are of hands.
ROOT_IMPORTANCE, HAND_IMPORTANCE = 4.0, 0.2

# Parent of each of OpenPose's 134 points: bones of body and feet, hands from the wrist.
_PARENTS = (
    1, -1, 1, 2, 3, 1, 5, 6, 1, 8, 9, 1, 11, 12, 0, 0, 14, 15,
    *3 * (13,), *3 * (10,), *68 * (0,), *21 * (7,), *21 * (4,),
)  # fmt: skip


class PoseRepresentation(nn.Module):
    """key points [B, F, K, 3] <-> values [B, F, P]; x and y in heights of the frame, confidence."""

    def __init__(self, num_key_points: int, frame_rate: float = 25.0) -> None:
        super().__init__()
        if num_key_points not in KEY_POINT_COUNTS:
            known = ", ".join(map(str, KEY_POINT_COUNTS))
            raise UserError(f"{num_key_points} key points are of an unknown order; expected one of {known}")
        points = [point for point in range(num_key_points) if point != NECK and point not in FACE]
        # A second, centred on a frame: shorter, a torso that bends would be taken for a smaller dancer.
        self.scale_window = 2 * round(frame_rate / 2) + 1
        self.num_key_points, self.num_bones = num_key_points, len(points)
        self.num_values = NUM_ROOT_COLUMNS + 2 * len(points)  # P
        self.num_reference_values = 3 * len(points)  # R
        parents = [_PARENTS[point] for point in points]
        self.register_buffer("points", torch.tensor(points), persistent=False)  # [n]
        self.register_buffer("parents", torch.tensor(parents), persistent=False)  # [n]
        self.register_buffer("chains", _chains(points), persistent=False)  # [n, 4]
        feet = [point in FEET for point in points]
        self.register_buffer("feet", torch.tensor(feet).nonzero()[:, 0], persistent=False)  # of n
        importance = [HAND_IMPORTANCE if point in HANDS else 1.0 for point in points for _ in "xy"]
        importance = [ROOT_IMPORTANCE, ROOT_IMPORTANCE, 1.0, *importance]
        self.register_buffer("importance", torch.tensor(importance), persistent=False)  # [P]

    def encode(self, key_points: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Return (values, weights), float32 [B, F, P] each, for reference [B, K, 3].

        weights: the smaller confidence of the points that a value is made of, at most 1. Where it is 0 the
        value is interpolated in time; 0 in a clip in which its points are never seen together.
        """
        places = key_points[..., :2]  # [B, F, K, 2]
        confidence = key_points[..., 2].clamp(0, 1)  # [B, F, K]
        torso = torso_length(reference)[:, None]  # [B, 1]
        is_torso = confidence[..., [NECK, *HIPS]].amin(-1, keepdim=True)  # [B, F, 1]
        hips = places[:, :, list(HIPS)].mean(2)  # [B, F, 2]
        length = (hips - places[:, :, NECK]).norm(dim=-1).clamp(min=1e-3)  # [B, F]
        scale = fill_gaps((length / torso).log()[..., None], is_torso > 0)  # [B, F, 1]
        scale = _moving_mean(scale, self.scale_window)  # [B, F, 1]
        root = (places[:, :, NECK] - reference[:, None, NECK, :2]) / torso[..., None]  # [B, F, 2]
        offsets = places[:, :, self.points] - places[:, :, self.parents]  # [B, F, n, 2]
        offsets = offsets / (torso[..., None] * scale.exp())[..., None]
        bones = torch.minimum(confidence[..., self.points], confidence[..., self.parents])  # [B, F, n]
        values = torch.cat([root, scale, offsets.flatten(2)], dim=-1)  # [B, F, P]
        is_neck = confidence[..., NECK, None]  # [B, F, 1]
        weights = torch.cat([is_neck, is_neck, is_torso, bones.repeat_interleave(2, -1)], dim=-1)  # [B, F, P]
        return fill_gaps(values, weights > 0), weights

    def encode_reference(self, reference: Tensor) -> Tensor:
        """Return float32 [B, R]: the reference's offsets in torso lengths, and which of them are there."""
        torso = torso_length(reference)[:, None, None]  # [B, 1, 1]
        offsets = (reference[:, self.points, :2] - reference[:, self.parents, :2]) / torso  # [B, n, 2]
        is_there = (reference[:, self.points, 2] > 0) & (reference[:, self.parents, 2] > 0)  # [B, n]
        offsets = torch.where(is_there[..., None], offsets, 0)
        return torch.cat([offsets.flatten(1), is_there.float()], dim=-1)  # [B, R]

    def positions(self, values: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """Return where the points (or the `rows` of n) stand from the reference's neck, [B, F, n, 2]."""
        offsets = values[..., NUM_ROOT_COLUMNS:].unflatten(-1, (self.num_bones, 2))  # [B, F, n, 2]
        size = values[..., SCALE, None, None].exp()  # [B, F, 1, 1]
        # Summed, not multiplied by a matrix: that would be in half precision under autocast.
        reach = F.pad(offsets, (0, 0, 0, 1))[..., self.chains[rows], :].sum(-2)  # [B, F, n, 2]
        return values[..., None, ROOT] + size * reach

    def decode(self, values: Tensor, reference: Tensor) -> Tensor:
        """Return key points [B, F, K, 3]; what is absent in the reference [B, K, 3] is absent (zeros)."""
        torso = torso_length(reference)[:, None, None, None]  # [B, 1, 1, 1]
        neck = reference[:, None, NECK, None, :2]  # [B, 1, 1, 2]
        places = values.new_zeros(*values.shape[:2], self.num_key_points, 2)  # [B, F, K, 2]
        places[:, :, NECK, None] = neck + torso * values[..., None, ROOT]
        places[:, :, self.points] = neck + torso * self.positions(values)
        is_there = (reference[..., 2:] > 0).to(values.dtype)  # [B, K, 1]
        if self.num_key_points > FACE[0]:
            is_head = is_there[:, list(HEAD)]  # [B, 5, 1]
            places[:, :, FACE[0] : FACE[-1] + 1] = _carry_face(places, reference[..., :2], is_head)
            is_there[:, FACE[0] : FACE[-1] + 1] *= is_head.amax(1, keepdim=True)
        is_there = is_there[:, None].expand(-1, places.shape[1], -1, -1)  # [B, F, K, 1]
        return torch.cat([places * is_there, is_there], dim=-1)

    def columns_of(self, points: list[int]) -> Tensor:
        """Return bool [P]: the values that place these points from their parents; the neck: root and size."""
        is_asked = torch.isin(self.points, torch.tensor(points, device=self.points.device))
        root = is_asked.new_full((NUM_ROOT_COLUMNS,), NECK in points)
        return torch.cat([root, is_asked.repeat_interleave(2)])


def torso_length(reference: Tensor) -> Tensor:
    """Return the distance from neck to mid-hip of key points [B, K, 3], float32 [B]. Raises UserError."""
    torso = reference[:, [NECK, *HIPS]]  # [B, 3, 3]
    length = (torso[:, 0, :2] - torso[:, 1:, :2].mean(1)).norm(dim=-1)  # [B]
    if not ((torso[..., 2] > 0).all() and (length > 1e-3).all()):
        raise UserError(
            "the reference pose lacks the neck or a hip, from which the body's size is measured; "
            "give a reference in which the dancer is seen from the head to below the hips"
        )
    return length


def fill_gaps(values: Tensor, is_there: Tensor) -> Tensor:
    """Return values [B, F, P] interpolated in time where bool [B, F or 1, P] is false; 0 if never there."""
    frames = torch.arange(values.shape[1], device=values.device)[:, None]  # [F, 1]
    last = len(frames) - 1
    before = torch.where(is_there, frames, -1).cummax(1).values  # [B, F, P]
    after = torch.where(is_there, frames, last + 1).flip(1).cummin(1).values.flip(1)  # [B, F, P]
    start = torch.where(before < 0, after, before).clamp(max=last)
    end = torch.where(after > last, before, after).clamp(min=0)
    share = (frames - start) / (end - start).clamp(min=1)  # [B, F, P]; beyond the ends start is end
    first, second = values.gather(1, start), values.gather(1, end)
    filled = (first + share * (second - first)) * is_there.any(1, keepdim=True)
    return torch.where(is_there, values, filled)


def _moving_mean(values: Tensor, window: int) -> Tensor:
    """Return [B, F, P] averaged over `window` frames, fewer at the ends."""
    smooth = F.avg_pool1d(values.transpose(1, 2), window, 1, window // 2, count_include_pad=False)
    return smooth.transpose(1, 2)


def _chains(points: list[int]) -> Tensor:
    """Return int64 [n, 4]: the `points` on the way from each to the neck, then n (no point)."""
    chains = torch.full((len(points), 4), len(points))  # at most: shoulder, elbow, wrist, finger
    for row, point in enumerate(points):
        for place in range(4):
            if point != NECK:
                chains[row, place] = points.index(point)
                point = _PARENTS[point]
    return chains


def _carry_face(places: Tensor, reference: Tensor, is_head: Tensor) -> Tensor:
    """Return the face [B, F, 68, 2] of reference [B, K, 2], moved, turned and scaled as places' head is.

    is_head: [B, 5, 1]. The similarity that fits the head's points best; with one point, a shift.
    """
    source, target = reference[:, None, list(HEAD)], places[:, :, list(HEAD)]  # [B, 1, 5, 2], [B, F, 5, 2]
    share = (is_head / is_head.sum(1, keepdim=True).clamp(min=1))[:, None]  # [B, 1, 5, 1]
    source_middle = (share * source).sum(2, keepdim=True)  # [B, 1, 1, 2]
    target_middle = (share * target).sum(2, keepdim=True)  # [B, F, 1, 2]
    as_complex = lambda points: torch.view_as_complex(points.contiguous())  # noqa: E731
    source = as_complex((source - source_middle) * share)  # [B, 1, 5]
    target = as_complex(target - target_middle)  # [B, F, 5]
    spread = (source * as_complex(reference[:, None, list(HEAD)] - source_middle).conj()).sum(-1, True).real
    turn = (source.conj() * target).sum(-1, True) / spread.clamp(min=1e-12)  # [B, F, 1]
    turn = torch.where(spread > 1e-8, turn, torch.ones_like(turn))
    face = as_complex(reference[:, None, FACE[0] : FACE[-1] + 1] - source_middle)  # [B, 1, 68]
    return target_middle + torch.view_as_real(turn * face)
