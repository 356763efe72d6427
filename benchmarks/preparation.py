"""Where does preparation's time go? CPU seconds of each stage of one video, frames per second and core.

    python benchmarks/preparation.py --video FILE [--pose_estimator NAME] [--resolution N] [--pose_stride N]
    python benchmarks/preparation.py --compare_poses DATA OTHER_DATA      how far two folders' poses differ

Protocol. One process prepares the video as a worker of prepare_guidance.py does, into a folder that is
removed, several times over; figures are the least CPU time of each stage (all threads of the process), as
other programs on the machine only add to it. A stage's time is its own: what it calls and is a stage itself
counts there. The models, and the functions that librosa compiles, are loaded before.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import system.waiting  # noqa: E402  (before torch is loaded)

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from datasets import VideoReader  # noqa: E402
from datasets.data_folder import VIDEO_FOLDER  # noqa: E402
from datasets.guidance.tracks import TYPE_FOLDERS  # noqa: E402
from preparation.music.librosa_loading import load_librosa  # noqa: E402
from preparation.pose import dwpose, mediapipe_pose  # noqa: E402, F401 (estimators register themselves)
from preparation.pose.estimators import make_pose_estimator  # noqa: E402
from preparation.prepare_video import prepare_video  # noqa: E402
from preparation.settings import Settings  # noqa: E402
from preparation.sources import Source  # noqa: E402

# {stage: functions, as MODULE:NAME or MODULE:CLASS.NAME}. Methods of the estimator are added.
STAGES = {
    "decoding": (
        "datasets:VideoReader.__init__", "datasets:VideoReader.iterate", "datasets:VideoReader.read",
    ),
    "scene cuts": ("preparation.prepare_video:CutDetector.add", "preparation.prepare_video:CutDetector.cuts"),
    "scaling": ("preparation.piece_writing:scale_frame",),
    "reference": ("preparation.piece_writing:rate_frame", "preparation.piece_writing:_write_reference"),
    "encoding": (
        "preparation.piece_writing:VideoEncoder.write", "preparation.piece_writing:VideoEncoder.__exit__",
        "preparation.piece_writing:VideoEncoder.add_sound",
    ),
    "music": ("preparation.piece_writing:read_music",),
    "pose files": ("preparation.piece_writing:write_pose", "preparation.piece_writing:rounded_pose"),
}  # fmt: skip
OF_ESTIMATOR = {"people": ("find_people",), "pose": ("key_points",)}
SURE, CLOSE = 0.5, 0.002  # confidence of a point that counts; distance as a share of the frame's height


class Stages:
    """CPU seconds by stage, each without the stages inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open, self._since = ["other"], time.process_time()

    def switch(self) -> None:
        now = time.process_time()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.switch()
        self._open.append(name)
        try:
            yield
        finally:
            self.switch()
            self._open.pop()

    def timed(self, name: str, function: Callable) -> Callable:
        """Return the function with its time noted; that of a generator at each step."""

        @functools.wraps(function)
        def run(*arguments, **keywords):
            with self.stage(name):
                result = function(*arguments, **keywords)
            return self._steps(name, result) if isinstance(result, Iterator) else result

        return run

    def _steps(self, name: str, steps: Iterator) -> Iterator:
        while True:
            with self.stage(name):
                try:
                    step = next(steps)
                except StopIteration:
                    return
            yield step


@contextlib.contextmanager
def watched(stages: Stages) -> Iterator[None]:
    """Let the functions of STAGES note their time."""
    with contextlib.ExitStack() as undo:
        for name, functions in STAGES.items():
            for function in functions:
                module, _, path = function.partition(":")
                *parents, last = path.split(".")
                owner = functools.reduce(getattr, parents, importlib.import_module(module))
                undo.callback(setattr, owner, last, getattr(owner, last))
                setattr(owner, last, stages.timed(name, getattr(owner, last)))
        yield


def profile(video: Path, settings: Settings, rounds: int) -> tuple[dict[str, float], int]:
    """Return (the least CPU seconds of each stage, frames of the video)."""
    cv2.setNumThreads(1)
    load_librosa()
    found = []
    for _ in range(rounds):
        estimator, stages = make_pose_estimator(settings), Stages()
        for name, methods in OF_ESTIMATOR.items():
            for method in methods:
                setattr(estimator, method, stages.timed(name, getattr(estimator, method)))
        with tempfile.TemporaryDirectory() as output_dir, watched(stages):
            stages.switch()
            stages.seconds.clear()
            result = prepare_video(Source(video, video.stem), settings, Path(output_dir), estimator)
            stages.switch()
        if result.faults:
            raise result.faults[0]
        found.append(dict(stages.seconds))
    least = {name: min(one.get(name, 0.0) for one in found) for name in found[0]}
    return least, len(VideoReader(video))


def compare_poses(folder: Path, other: Path) -> dict[str, float]:
    """Return how far the confident points of two data folders differ, as shares of the frame's height."""
    distances, lost, gained = [], 0, 0
    for path in sorted((folder / VIDEO_FOLDER).glob("*.mp4")):
        height, width = VideoReader(path).size
        points, others = (_read_poses(root, path.stem) for root in (folder, other))
        sure, other_sure = points[..., 2] >= SURE, others[..., 2] >= SURE
        lost, gained = lost + int((sure & ~other_sure).sum()), gained + int((other_sure & ~sure).sum())
        moved = (points - others)[..., :2] * (width / height, 1)
        distances.append(np.linalg.norm(moved, axis=-1)[sure & other_sure])
    distances = np.concatenate(distances)
    return {
        "points": len(distances), "lost": lost, "gained": gained,
        "identical": float((distances == 0).mean()), "within_0.2_percent": float((distances <= CLOSE).mean()),
        "median": float(np.median(distances)), "p99": float(np.quantile(distances, 0.99)),
    }  # fmt: skip


def _read_poses(folder: Path, name: str) -> np.ndarray:
    path = folder / TYPE_FOLDERS["pose"] / f"{name}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    files = sorted(path.with_suffix("").glob("*.json"))
    return np.array([json.loads(file.read_text(encoding="utf-8"))["keypoints"] for file in files])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--video", type=Path, metavar="FILE")
    parser.add_argument("--pose_estimator", default="mediapipe")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--pose_stride", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--compare_poses", nargs=2, type=Path, metavar="DATA")
    arguments = parser.parse_args()
    if arguments.compare_poses:
        print(json.dumps(compare_poses(*arguments.compare_poses), indent=1))
        return
    shapes = {name: getattr(arguments, name) for name in ("resolution", "pose_estimator", "pose_stride")}
    settings = Settings(**shapes)
    seconds, num_frames = profile(arguments.video, settings, arguments.rounds)
    total = sum(seconds.values())
    for name, share in sorted(seconds.items(), key=lambda one: -one[1]):
        print(f"{name:12} {share:7.2f} s {share / total:6.1%} {1000 * share / num_frames:7.1f} ms per frame")
    print(f"{num_frames} frames: {total:.2f} s, {num_frames / total:.2f} frames per second and core")
    if arguments.json:
        figures = {"num_frames": num_frames, "cpu_seconds": seconds, "frames_per_second": num_frames / total}
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
