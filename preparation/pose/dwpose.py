"""DWPose (arXiv:2307.15880) through onnxruntime, with the user's own files of its two models.

YOLOX finds people in the whole frame; the pose model then gives 133 COCO-WholeBody points of one of them,
each as the highest place of two one-dimensional distributions (SimCC).
"""

import os
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np

from datasets.guidance.people import Detection
from preparation.settings import Settings
from system.errors import ConfigError

from .estimators import INSTALL, PoseEstimator, absent_points, keep_inside, register_pose_estimator

DETECTOR_NAME, POSE_NAME = MODEL_NAMES = ("yolox_l.onnx", "dw-ll_ucoco_384.onnx")

STRIDES = (8, 16, 32)  # of YOLOX's three grids
PADDING_GREY = 114
PERSON_CLASS = 0
MIN_SCORE, MAX_OVERLAP = 0.3, 0.45

BOX_MARGIN = 1.25  # the pose model sees so much more than the box
RGB_MEAN, RGB_DEVIATION = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
SIMCC_STEPS = 2  # per pixel of the pose model's input
MIN_CONFIDENCE = 0.3  # of a point; below, the model's answer is any place

# COCO-WholeBody's number of each OpenPose body point but the neck (1); feet, face and hands keep their order.
BODY = {0: 0, 2: 6, 3: 8, 4: 10, 5: 5, 6: 7, 7: 9, 8: 12, 9: 14, 10: 16, 11: 11, 12: 13, 13: 15,
        14: 2, 15: 1, 16: 4, 17: 3}  # fmt: skip
NECK, SHOULDERS = 1, (5, 6)
NUM_BODY, NUM_COCO_BODY, NUM_WHOLE_BODY = 18, 17, 133


@register_pose_estimator("dwpose", needs=("onnxruntime",))
class DWPose(PoseEstimator):
    """YOLOX for people, DWPose for the points of one."""

    install = INSTALL
    gpu_share = 0.25  # of a GPU, for both models: Ray puts so many videos on one

    @staticmethod
    def check(settings: Settings) -> None:
        """Raise ConfigError when the models are not where --dwpose_dir says."""
        folder = Path(settings.dwpose_dir or ".")
        missing = [name for name in MODEL_NAMES if not (folder / name).is_file()]
        if missing:
            raise ConfigError(
                f"--dwpose_dir {folder}: {' and '.join(missing)} missing; "
                f"put DWPose's two models there, {' and '.join(MODEL_NAMES)}"
            )

    def __init__(self, settings: Settings) -> None:
        self.check(settings)
        folder = Path(settings.dwpose_dir)
        self._detector, self._pose = (_open_model(folder / name) for name in MODEL_NAMES)
        self.description = f"dwpose ({', '.join(MODEL_NAMES)}) by onnxruntime {version('onnxruntime')}"

    def find_people(self, frame: np.ndarray) -> list[Detection]:
        entry = self._detector.get_inputs()[0]
        height, width = entry.shape[2:]
        image, scale = _letterbox(frame[..., ::-1], (height, width))  # YOLOX was trained on BGR, 0..255
        image = image.transpose(2, 0, 1)[None].astype(np.float32)
        (output,) = self._detector.run(None, {entry.name: image})
        boxes, scores = decode_yolox(output[0], (height, width))
        whole = np.array([frame.shape[1], frame.shape[0]] * 2)
        fractions = np.clip(boxes / scale / whole, 0, 1).tolist()
        return [Detection(tuple(fractions[k]), float(scores[k])) for k in _suppress_overlaps(boxes, scores)]

    def key_points(self, frame: np.ndarray, person: Detection | None) -> np.ndarray:
        if person is None:
            return absent_points()
        entry = self._pose.get_inputs()[0]
        height, width = entry.shape[2:]
        to_input = _crop_matrix(np.array(person.box), frame.shape[:2], (height, width))
        crop = cv2.warpAffine(frame, to_input, (width, height), flags=cv2.INTER_LINEAR)
        crop = ((crop - RGB_MEAN) / RGB_DEVIATION).transpose(2, 0, 1)[None].astype(np.float32)
        across, down = self._pose.run(None, {entry.name: crop})
        points = decode_simcc(across[0], down[0])
        points[:, :2] = cv2.transform(points[None, :, :2], cv2.invertAffineTransform(to_input))[0]
        points[:, :2] /= frame.shape[1], frame.shape[0]
        return to_134_points(points)


def decode_yolox(output: np.ndarray, input_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return (boxes [P, 4] as left, top, right, bottom in pixels of the input, scores [P]) of people.

    output [A, 5 + classes]: centre and logarithm of the size, relative to the cell's corner and stride; score
    that there is anything; score of each class.
    """
    cells = []
    for stride in STRIDES:
        rows, columns = np.mgrid[: input_size[0] // stride, : input_size[1] // stride]
        cells.append(np.stack([columns.ravel(), rows.ravel(), np.full(rows.size, stride)], axis=1))
    corner_x, corner_y, stride = np.concatenate(cells).T
    scores = output[:, 4] * output[:, 5 + PERSON_CLASS]
    x, y = (output[:, 0] + corner_x) * stride, (output[:, 1] + corner_y) * stride
    with np.errstate(over="ignore"):  # of cells that hold nothing
        half_width, half_height = np.exp(output[:, 2]) * stride / 2, np.exp(output[:, 3]) * stride / 2
    boxes = np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=1)
    return boxes[scores >= MIN_SCORE], scores[scores >= MIN_SCORE]


def decode_simcc(across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return [K, 3], x and y in pixels of the input, confidence, of [K, 2 width] and [K, 2 height]."""
    confidence = np.minimum(across.max(axis=1), down.max(axis=1))
    x, y = across.argmax(axis=1) / SIMCC_STEPS, down.argmax(axis=1) / SIMCC_STEPS
    return np.stack([x, y, confidence], axis=1)


def to_134_points(whole_body: np.ndarray) -> np.ndarray:
    """Return float32 [134, 3] in OpenPose's order of [133, 3] in COCO-WholeBody's; unsure ones are absent."""
    sure = np.where(whole_body[:, 2:] >= MIN_CONFIDENCE, whole_body, 0)
    points = absent_points()
    points[list(BODY)] = sure[list(BODY.values())]
    left, right = sure[list(SHOULDERS)]
    if left[2] > 0 and right[2] > 0:
        points[NECK] = (left + right) / 2
        points[NECK, 2] = min(left[2], right[2])
    points[NUM_BODY:] = sure[NUM_COCO_BODY:NUM_WHOLE_BODY]
    points[:, 2] = np.minimum(points[:, 2], 1)  # SimCC's heights may pass 1 a little
    return keep_inside(points)


def _open_model(path: Path):
    """Return a session with one thread: worker processes are the parallelism. Raises ConfigError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    try:
        session = onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
    except Exception as error:  # onnxruntime's own classes, which are not exported
        raise ConfigError(f"{path}: is not a readable ONNX model ({str(error).splitlines()[0]})") from error
    num_outputs = 1 if path.name == DETECTOR_NAME else 2
    shape = session.get_inputs()[0].shape
    is_image = len(shape) == 4 and all(isinstance(side, int) for side in shape[2:])
    if not is_image or len(session.get_outputs()) != num_outputs:
        raise ConfigError(f"{path}: is not DWPose's model of that name (input {shape})")
    return session


def _letterbox(frame: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    """Return (the frame scaled into the top left of a grey image of (height, width), the scale)."""
    scale = min(size[0] / frame.shape[0], size[1] / frame.shape[1])
    image = np.full((*size, 3), PADDING_GREY, np.uint8)
    scaled = cv2.resize(frame, (round(frame.shape[1] * scale), round(frame.shape[0] * scale)))
    image[: scaled.shape[0], : scaled.shape[1]] = scaled
    return image, scale


def _suppress_overlaps(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Return indices of the boxes [P, 4] that do not overlap a better one."""
    if len(boxes) == 0:
        return []
    corners_and_sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxes(corners_and_sizes.tolist(), scores.tolist(), MIN_SCORE, MAX_OVERLAP)
    return np.asarray(kept).ravel().tolist()


def _crop_matrix(box: np.ndarray, frame_size: tuple[int, int], input_size: tuple[int, int]) -> np.ndarray:
    """Return [2, 3] from the frame's pixels to the pose model's input, into which the widened box fits."""
    left, top, right, bottom = box * np.array([frame_size[1], frame_size[0]] * 2)
    height, width = input_size
    scale = min(width / max(1.0, right - left), height / max(1.0, bottom - top)) / BOX_MARGIN
    x, y = width / 2 - scale * (left + right) / 2, height / 2 - scale * (top + bottom) / 2
    return np.array([[scale, 0, x], [0, scale, y]])
