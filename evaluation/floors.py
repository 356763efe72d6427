"""What no skill at all would get, and the best that could be had: every number stands beside these.

A floor is a clip whose prediction is something known. It is measured as a prediction is.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterator

import numpy as np

from datasets.transforms import make_transform, reference_transform
from pipelines.panels import frames_to_uint8

from .clips.pairs import ClipPair
from .clips.truth import Truth
from .measuring import Measured, measure_pose

FLOORS = {
    "reference_repeated": "the reference image in every frame",
    "another_pose": "sampled with the next clip's pose; without a model, the prediction's pose held "
    "against the next clip's",
    "vae_round_trip": "the truth, encoded and decoded by the VAE: the best that its model could do",
    "another_video": "the next video of the folder, frame by frame",
    "truth_itself": "the truth as its own prediction: what the judges say of the real thing",
}
NEEDS = {
    "reference_repeated": "needs the reference images: put them into reference_images/",
    "another_pose": "needs another clip with a pose, and a judge of poses (--pose_estimator) or a model "
    "(--model_path)",
    "vae_round_trip": "needs a VAE: give --vae_model_name_or_path FOLDER",
    "another_video": "there is one clip alone",
    "truth_itself": "no metric that is asked for says anything of it",
}
NOT_OF_TRUTH = (  # says nothing of the truth against itself
    "psnr", "ssim", "l1", "psnr_legacy", "ssim_legacy", "l1_legacy", "hand_psnr", "face_psnr", "dtssd",
    "lpips", "lpips_legacy", "cmmd", "fid", "fvd", "fid_vid", "video_mmd",
)  # fmt: skip
ROUND_TRIP_FRAMES = 8

RoundTrip = Callable[[np.ndarray], np.ndarray]  # uint8 [n, H, W, 3] to the same, through a VAE


def wanted_of(floor: str, wanted: Collection[str]) -> list[str]:
    """Return which of the metrics say something of a floor."""
    left_out = NOT_OF_TRUTH if floor == "truth_itself" else ()
    return [name for name in wanted if name not in left_out]


def reference_repeated(pair: ClipPair, fit: str) -> ClipPair | None:
    """Return the pair with the reference image as every frame; None where there is none."""
    if pair.clip.reference is None:
        return None
    image = frames_to_uint8(reference_transform(pair.clip.reference, pair.size, fit)[None])[0]
    return pair.with_prediction(lambda: (image for _ in range(pair.num_frames)))


def another_video(pair: ClipPair, other: Truth, fit: str) -> ClipPair:
    """Return the pair with the frames of another clip, from its start again where it is shorter."""
    transform = make_transform(other.video.size, pair.size, fit=fit)
    source = dataclasses.replace(other, transform=transform).source()

    def frames() -> Iterator[np.ndarray]:
        count = 0
        while count < pair.num_frames:
            for frame in source():
                yield frame
                count += 1
                if count == pair.num_frames:
                    return

    return pair.with_prediction(frames)


def vae_round_trip(pair: ClipPair, round_trip: RoundTrip) -> ClipPair:
    """Return the pair with the truth through a VAE as its prediction."""

    def frames() -> Iterator[np.ndarray]:
        held = []
        for frame in pair.truth():
            held.append(frame)
            if len(held) == ROUND_TRIP_FRAMES:
                yield from round_trip(np.stack(held))
                held = []
        if held:
            yield from round_trip(np.stack(held))

    return pair.with_prediction(frames)


def truth_itself(pair: ClipPair, clip: Truth) -> ClipPair:
    """Return the pair with the truth as its prediction; clip: the pair's, with the truth's own pose."""
    return dataclasses.replace(pair, prediction=pair.truth, clip=clip)


def pose_of_another(measured: Measured, other: Truth, wanted: Collection[str]) -> dict[str, float]:
    """Return {metric: value} of the prediction's pose against another clip's, where both are known."""
    if measured.points is None or other.key_points is None:
        return {}
    driving = wrapped(other.key_points, len(measured.points))
    found = Measured(points=measured.points)
    measure_pose(found, driving, [name for name in wanted if name in measured.values])
    return {
        name: float(np.nanmean(curve)) for name, curve in found.curves.items() if not np.isnan(curve).all()
    }


def wrapped(rows, num_rows: int):
    """Return as many rows [F, ...] of an array or tensor, from its start again where it is shorter."""
    return rows[np.arange(num_rows) % len(rows)]
