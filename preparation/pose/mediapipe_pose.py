"""Key points by the models that the mediapipe wheel carries: nothing is downloaded.

MediaPipe's own "holistic" solution takes whichever person its detector likes best, anew in every frame. Here
the parts of its graph stand alone: the detector reports everybody it sees, and the landmark models are given
the person that was chosen. mediapipe 0.10.21 is the last release that carries the models.
"""

import contextlib
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

from datasets.guidance.people import Detection
from preparation.settings import Settings
from system.errors import ConfigError

from .estimators import PoseEstimator, absent_points, register_pose_estimator
from .mediapipe_points import to_134_points

ROI_SCALE = 1.25  # of the square around a person, as in MediaPipe's own graph
SAME_PERSON = 0.15  # of the square's side between two hip centres: one person, seen upside down as well
GREY = np.full((256, 256, 3), 128, np.uint8)
FULL_MODEL = 1  # the wheel has no "heavy" pose model (2)

FIND_PEOPLE = """
input_stream: "image"
output_stream: "people"
num_threads: 1
node { calculator: "PoseDetectionCpu" input_stream: "IMAGE:image" output_stream: "DETECTIONS:people" }
"""

KEY_POINTS = """
input_stream: "image"
input_stream: "roi"
input_side_packet: "model_complexity"
input_side_packet: "no"
output_stream: "pose"
output_stream: "next_roi"
output_stream: "left_hand"
output_stream: "right_hand"
output_stream: "face"
num_threads: 1
node {
  calculator: "PoseLandmarkByRoiCpu"
  input_stream: "IMAGE:image"
  input_stream: "ROI:roi"
  input_side_packet: "MODEL_COMPLEXITY:model_complexity"
  input_side_packet: "ENABLE_SEGMENTATION:no"
  output_stream: "LANDMARKS:pose"
  output_stream: "AUXILIARY_LANDMARKS:auxiliary"
}
node { calculator: "ImagePropertiesCalculator" input_stream: "IMAGE_CPU:image" output_stream: "SIZE:size" }
node {
  calculator: "PoseLandmarksToRoi"
  input_stream: "LANDMARKS:auxiliary"
  input_stream: "IMAGE_SIZE:size"
  output_stream: "ROI:next_roi"
}
node {
  calculator: "HandLandmarksLeftAndRightCpu"
  input_stream: "IMAGE:image"
  input_stream: "POSE_LANDMARKS:pose"
  output_stream: "LEFT_HAND_LANDMARKS:left_hand"
  output_stream: "RIGHT_HAND_LANDMARKS:right_hand"
}
node {
  calculator: "SplitNormalizedLandmarkListCalculator"
  input_stream: "pose"
  output_stream: "head"
  options { [mediapipe.SplitVectorCalculatorOptions.ext] { ranges { begin: 0 end: 11 } } }
}
node {
  calculator: "FaceLandmarksFromPoseCpu"
  input_stream: "IMAGE:image"
  input_stream: "FACE_LANDMARKS_FROM_POSE:head"
  input_side_packet: "REFINE_LANDMARKS:no"
  output_stream: "FACE_LANDMARKS:face"
}
"""


@register_pose_estimator("mediapipe", needs=("mediapipe",))
class MediaPipePose(PoseEstimator):
    """MediaPipe's pose (full), hand and face landmark models."""

    install = (
        "install it with: pip install -r requirements-prepare.txt && "
        "pip install --no-deps -r requirements-mediapipe.txt (Python 3.11 or 3.12; "
        "on another Python use --pose_estimator dwpose)"
    )

    @staticmethod
    def check(settings: Settings) -> None:
        """Raise ConfigError when another release is installed: later ones carry no models."""
        if version("mediapipe") != "0.10.21":
            raise ConfigError(
                f"--pose_estimator mediapipe needs mediapipe 0.10.21, the last release that carries its "
                f"models, found {version('mediapipe')}; {MediaPipePose.install}"
            )

    def __init__(self, settings: Settings) -> None:
        with _without_chatter():
            import mediapipe
            from mediapipe.framework.formats.rect_pb2 import NormalizedRect
            from mediapipe.python._framework_bindings import resource_util

            resource_util.set_resource_dir(str(Path(mediapipe.__file__).parents[1]))  # of the models' names
            self._mediapipe, self._region = mediapipe, NormalizedRect
            create = mediapipe.packet_creator
            side_packets = {
                "model_complexity": create.create_int(FULL_MODEL),
                "no": create.create_bool(False),
            }
            self._finder = _Graph(mediapipe.CalculatorGraph, FIND_PEOPLE, {})
            self._landmarker = _Graph(mediapipe.CalculatorGraph, KEY_POINTS, side_packets)
            self._warm_up()
        self.description = f"mediapipe {version('mediapipe')}: pose (full), hands, face"
        self._next_roi = None

    def _warm_up(self) -> None:
        """Let the models report to stderr on their first frames; that is not for the user."""
        self.find_people(GREY)
        self.start_piece()

    def start_piece(self) -> None:
        """Forget the frame before: the graph follows hands and face, which ends with a frame of nobody.

        So a piece's poses do not depend on what this process did before.
        """
        self._next_roi = None
        self._landmarks(GREY, self._region(x_center=0.5, y_center=0.5, width=1, height=1))

    def find_people(self, frame: np.ndarray) -> list[Detection]:
        packet = self._finder.run({"image": self._image(frame)}).get("people")
        if packet is None:
            return []
        found = self._mediapipe.packet_getter.get_proto_list(packet)
        return without_doubles([self._detection(person, frame.shape[:2]) for person in found])

    def key_points(self, frame: np.ndarray, person: Detection | None) -> np.ndarray:
        """Return points as PoseEstimator says; one whom the detector missed is sought where they were."""
        roi = self._next_roi if person is None else person.details
        if roi is None:
            return absent_points()
        found = self._landmarks(frame, roi)
        self._next_roi = found.get("next_roi")
        if "pose" not in found:
            return absent_points()
        parts = {
            name: np.array([[p.x, p.y, p.visibility] for p in found[name].landmark])
            for name in ("pose", "face", "left_hand", "right_hand")
            if name in found
        }
        return to_134_points(**parts)

    def _landmarks(self, frame: np.ndarray, roi) -> dict:
        """Return {output stream: message} of the graph; a part that was not found has no entry."""
        rect = self._mediapipe.packet_creator.create_proto(roi)
        packets = self._landmarker.run({"image": self._image(frame), "roi": rect})
        return {name: self._mediapipe.packet_getter.get_proto(packet) for name, packet in packets.items()}

    def _image(self, frame: np.ndarray):
        create = self._mediapipe.packet_creator.create_image_frame
        pixels = np.ascontiguousarray(frame).view()
        pixels.flags.writeable = False  # what nobody can change is not copied
        return create(image_format=self._mediapipe.ImageFormat.SRGB, data=pixels)

    def _detection(self, person, frame_size: tuple[int, int]) -> Detection:
        """Return a detection with the region of interest that MediaPipe's own graph makes of it.

        The detector gives the hips' centre and a point on a circle around the whole body, right above it
        when the person stands.
        """
        height, width = frame_size
        hips, above = person.location_data.relative_keypoints[:2]
        dx, dy = (above.x - hips.x) * width, (above.y - hips.y) * height
        side = 2 * ROI_SCALE * math.hypot(dx, dy)  # pixels
        rotation = math.remainder(math.pi / 2 - math.atan2(-dy, dx), 2 * math.pi)
        roi = self._region(
            x_center=hips.x, y_center=hips.y, width=side / width, height=side / height, rotation=rotation
        )
        half_width, half_height = side / width / 2, side / height / 2
        box = (hips.x - half_width, hips.y - half_height, hips.x + half_width, hips.y + half_height)
        return Detection(box, person.score[0], roi)


def without_doubles(people: list[Detection]) -> list[Detection]:
    """Return the people without weaker detections of somebody who is there already."""
    kept: list[Detection] = []
    for person in sorted(people, key=lambda one: one.score, reverse=True):
        if not any(_is_same_place(person.details, other.details) for other in kept):
            kept.append(person)
    return kept


def _is_same_place(roi, other) -> bool:
    """Compare two regions of interest, in units of the larger one's side, which is square in pixels."""
    dx = (roi.x_center - other.x_center) / max(roi.width, other.width)
    dy = (roi.y_center - other.y_center) / max(roi.height, other.height)
    return math.hypot(dx, dy) < SAME_PERSON


class _Graph:
    """A running MediaPipe graph that is given one frame at a time."""

    def __init__(self, make_graph: Callable, text: str, side_packets: dict) -> None:
        self._graph, self._time, self._outputs = make_graph(graph_config=text), 0, {}
        for name in re.findall(r'^output_stream: "(\w+)"', text, flags=re.MULTILINE):
            self._graph.observe_output_stream(name, self._outputs.__setitem__)
        self._graph.start_run(side_packets)

    def run(self, inputs: dict) -> dict:
        """Return {output stream: packet} of one frame, of the streams that gave one."""
        self._time += 1
        self._outputs.clear()
        for name, packet in inputs.items():
            self._graph.add_packet_to_input_stream(name, packet.at(self._time))
        self._graph.wait_until_idle()
        return dict(self._outputs)


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Hold back what C++ prints to stderr; it is shown only when an exception ends the block."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as chatter:
        os.dup2(chatter.fileno(), 2)
        try:
            yield
        except BaseException:
            chatter.seek(0)
            os.write(kept, chatter.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
