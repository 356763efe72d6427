"""A kind of track in one file of a user's: joints of SMPL's body model, NAME.npz with `joints` [N, 22, 3].

x, y and z are in metres from the pelvis, y up; a person who faces the camera has the left hand at x > 0.
"""

import cv2
import numpy as np
import torch
from torch import nn

from datasets import DataError, GuidanceKind, register_guidance_kind
from models import register_guidance_encoder

PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19)
MIRRORED = [0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20]
LONGEST_REACH = 3.0  # metres


@register_guidance_kind("smpl")
class SmplJoints(GuidanceKind):
    name = "smpl_joints"
    whole_suffixes = (".npz",)
    ndims = (2,)

    def load_rows(self, path):
        with np.load(path) as archive:
            if "joints" not in archive:
                raise DataError(path, f"no joints in it, but {', '.join(archive)}", "save joints=[N, 22, 3]")
            return archive["joints"]

    def check(self, track, kept, add, frame_size):
        reach = max(max(-low, high) for _, low, high, _ in kept)
        if reach > LONGEST_REACH:
            add(track.path, f"a joint is {reach:.4g} m from the pelvis", "save metres", "warning")
        return super().check(track, kept, add, frame_size)

    def fit(self, track, values, transform, frame_size):
        if transform.flipped:
            values = values[:, MIRRORED] * np.array([-1, 1, 1], np.float32)
        return torch.from_numpy(values)

    def check_flippable(self, track, row_shape):
        if row_shape[0] != len(MIRRORED):
            problem = f"{row_shape[0]} joints have no known sides"
            raise DataError(track.path, problem, "leave out --random_flip")

    def draw(self, condition, frame, size, background=None):
        image = np.zeros((*size, 3), np.uint8) if background is None else background.copy()
        places = (condition[frame][:, :2] * (0.4, -0.4) + 0.5) * (size[1], size[0])
        points = [tuple(map(int, place)) for place in places.round()]
        for joint, parent in enumerate(PARENTS[1:], start=1):
            cv2.line(image, points[joint], points[parent], (255, 200, 0), 1, cv2.LINE_AA)
        return image


@register_guidance_encoder("smpl", kind="vector")
class SmplEncoder(nn.Module):
    def __init__(self, guidance_embedding_channels, guidance_input_channels):
        super().__init__()
        self.linear = nn.Linear(3 * guidance_input_channels, guidance_embedding_channels)

    def forward(self, condition):  # [B, F, J, 3] -> [B, F, E]
        return self.linear(condition.flatten(2))
