"""A user's own pose estimator, for videos whose dancers are red squares: cheap, and its truth is known."""

import os
import time

import cv2
import numpy as np


def find_markers(frame: np.ndarray) -> np.ndarray | None:
    """The corners and the centre of each red square, over and over: [P, 134, 3]; None: no square."""
    frame = frame.astype(int)
    red = ((frame[..., 0] > 150) & (frame[..., 1] < 100) & (frame[..., 2] < 100)).astype(np.uint8)
    _, _, boxes, _ = cv2.connectedComponentsWithStats(red)
    people = []
    for left, top, width, height, area in boxes[1:]:
        if area >= 30:
            corners = [
                [left + dx * width, top + dy * height]
                for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5))
            ]
            points = np.array([corners[number % 5] for number in range(134)]) / frame.shape[1::-1]
            people.append(np.column_stack([points, np.full(134, 0.9)]))
    return np.array(people) if people else None


class MarkerPose:
    """The same as a class, so slow that there is time to stop it."""

    def __call__(self, frame):
        time.sleep(0.2)
        return find_markers(frame)


def coco_points(frame: np.ndarray) -> np.ndarray:
    """Wrong: 17 points."""
    return np.zeros((17, 3))


def crash(frame: np.ndarray) -> None:
    """Ends the process, as a library may that runs out of memory."""
    os._exit(3)


def level(sound, sample_rate, frame_seconds):
    """Music features of a user's own: the loudness around each frame, and the frame's time."""
    windows = [
        sound[max(0, round((t - 0.02) * sample_rate)) : round((t + 0.02) * sample_rate)]
        for t in frame_seconds
    ]
    return np.array(
        [[np.abs(window).max(initial=0), t] for window, t in zip(windows, frame_seconds, strict=True)]
    )
