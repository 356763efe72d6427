"""Where hands and face are in a frame, by its key points: what their metrics measure, and what a loss weighs.

The box of a hand is that of its points of confidence 0.3 and more, at least 5, with a fifth of its longer
side added all around, cut at the frame. So is the face's, which spans chin to brows, not the hair. A hand
that is not surely seen has no box: nobody knows what the frame shows there (MimicMotion, arXiv:2406.19680).
OpenPose's 134 points have hands, 92 and 134 a face: a wrist does not tell whether the hand beyond it is seen.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from datasets.guidance.kind import KINDS, KINDS_OF_TYPES
from datasets.guidance.openpose import FACE, HANDS, OPENPOSE_COUNTS
from datasets.guidance.people import LEAST_CONFIDENCE
from datasets.transforms import Size

REGIONS = {"hands": HANDS, "face": (FACE,)}  # {name: the points of each of its parts}
LEAST_POINTS = 5  # of a hand or face, for a box
BOX_MARGIN = 0.2  # of the box's longer side, added on each side


def counts_with(region: str) -> list[int]:
    """Return the numbers of key points that have this region."""
    needed = max(part.stop for part in REGIONS[region])
    return [count for count in OPENPOSE_COUNTS if count >= needed]


def type_of_person(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """Return the first guidance type of key points of the person, or None.

    shapes: {type: shape of one frame's condition}, (K, 3) of key points.
    """
    for name, shape in shapes.items():
        by_shape = KINDS["key_points" if len(shape) == 2 and shape[1] == 3 else "features"]
        if KINDS_OF_TYPES.get(name, by_shape).on_person:
            return name
    return None


def region_boxes(points: Tensor, region: str, size: Size, least_side: int = 1) -> Tensor:
    """Return the boxes of a region's parts in cells of a grid of size (height, width).

    They are int64 [..., parts, 2, 2], for points [..., K, 3] with x and y in cells. A box is [[top, bottom],
    [left, right]], bottom and right excluded; all 0 where the part is not seen, or its box has a side shorter
    than `least_side`.
    """
    has_region = points.shape[-2] in counts_with(region)
    boxes = [_box_around(points[..., part, :], size, least_side) for part in REGIONS[region] if has_region]
    return torch.stack(boxes, -3) if boxes else points.new_zeros((*points.shape[:-2], 0, 2, 2)).long()


def _box_around(points: Tensor, size: Size, least_side: int) -> Tensor:
    """Return the box [..., 2, 2] of a part's points [..., n, 3]. Without a wait for a GPU's result."""
    places = points[..., :2]
    seen = (points[..., 2] >= LEAST_CONFIDENCE) & places.isfinite().all(-1)
    first = places.masked_fill(~seen[..., None], torch.inf).amin(-2)
    last = places.masked_fill(~seen[..., None], -torch.inf).amax(-2)
    margin = BOX_MARGIN * (last - first).amax(-1, keepdim=True)
    ends = torch.stack([(first - margin).floor(), (last + margin).ceil()], -1)  # [..., x and y, 2]
    spans = torch.stack([ends[..., 1, :].clamp(0, size[0]), ends[..., 0, :].clamp(0, size[1])], -2)
    is_box = (seen.sum(-1) >= LEAST_POINTS) & ((spans[..., 1] - spans[..., 0]) >= least_side).all(-1)
    return spans.where(is_box[..., None, None], 0).long()


def region_mask(points: Tensor, region: str, size: Size) -> Tensor:
    """Return which cells of a grid of size (height, width) a region touches, bool [..., height, width].

    points: [..., K, 3], x and y in 0..1 of the frame that the grid covers.
    """
    height, width = size
    cells = torch.stack([points[..., 0] * width, points[..., 1] * height, points[..., 2]], -1)
    mask = torch.zeros((*points.shape[:-2], *size), dtype=torch.bool, device=points.device)
    for box in region_boxes(cells, region, size).unbind(-3):
        rows, columns = (_within(box[..., axis, :], count) for axis, count in enumerate(size))
        mask = mask | (rows[..., :, None] & columns[..., None, :])
    return mask


def _within(span: Tensor, count: int) -> Tensor:
    """Return which of 0 .. count - 1 are in a span [..., 2], bool [..., count]."""
    numbers = torch.arange(count, device=span.device)
    return (numbers >= span[..., :1]) & (numbers < span[..., 1:])


def weight_map(points: Tensor, weights: Mapping[str, float], size: Size) -> Tensor:
    """Return float32 [B, F, 1, height, width]: the weight of a region in it, 1 elsewhere.

    points: [B, F, K, 3] in 0..1 of the frame; weights: {region: weight}. Where regions overlap, the larger
    counts: a hand before the face is a hand.
    """
    weighed = torch.ones((*points.shape[:-2], *size), device=points.device)
    for region in sorted(weights, key=weights.__getitem__):
        weighed = weighed.masked_fill(region_mask(points, region, size), weights[region])
    return weighed[:, :, None]
