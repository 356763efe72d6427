"""Faces by two ONNX files of OpenCV's zoo: YuNet finds them, SFace describes them."""

from pathlib import Path

import cv2
import numpy as np

from system.errors import ModelError

FACE_SIZE = 112  # pixels per side, as SFace was trained
# Where eyes (the person's right one first), nose and corners of the mouth lie in such an image.
FACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
_SURE = 0.8  # score of a face
_LARGEST_SIDE = 640  # faces are looked for in an image of at most this: YuNet knows them up to 300 pixels


class FaceFiles:
    """What finds the largest face of a frame and describes it by 128 numbers."""

    def __init__(self, detector_path: str | Path, recognizer_path: str | Path):
        """Raise ModelError when a file is not there or is not the model that is expected."""
        self._detector = _open_detector(Path(detector_path).expanduser())
        self._recognizer = _open_recognizer(Path(recognizer_path).expanduser())

    def describe(self, frame: np.ndarray) -> np.ndarray | None:
        """Return float32 [128] of the largest face of a uint8 frame [H, W, 3]; None without a face."""
        points = self.find(frame)
        return None if points is None else features_of(self._recognizer, aligned_face(frame, points))

    def find(self, frame: np.ndarray) -> np.ndarray | None:
        """Return five points [5, 2] of the largest face, in pixels; None where there is none."""
        scale = min(1.0, _LARGEST_SIDE / max(frame.shape[:2]))
        size = tuple(max(32, round(side * scale)) for side in frame.shape[1::-1])
        image = cv2.resize(frame, size, interpolation=cv2.INTER_AREA) if size != frame.shape[1::-1] else frame
        self._detector.setInputSize(size)
        faces = self._detector.detect(np.ascontiguousarray(image[..., ::-1]))[1]  # it expects B G R
        if faces is None or not len(faces):
            return None
        largest = max(faces, key=lambda face: face[2] * face[3])
        return largest[4:14].reshape(5, 2) * [frame.shape[1] / size[0], frame.shape[0] / size[1]]


def load_face_network(detector_path: str | Path, recognizer_path: str | Path) -> FaceFiles:
    """Return the face network of two ONNX files."""
    return FaceFiles(detector_path, recognizer_path)


def aligned_face(frame: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Return [112, 112, 3] of a frame, turned and scaled so that the points lie as SFace expects them."""
    # As complex numbers a turn with scale is one factor: least squares gives it and the shift.
    source, target = (values[:, 0] + 1j * values[:, 1] for values in (points, FACE_POINTS))
    centred = source - source.mean()
    factor = (centred.conj() @ (target - target.mean())) / max((centred.conj() @ centred).real, 1e-12)
    shift = target.mean() - factor * source.mean()
    matrix = np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])
    return cv2.warpAffine(frame, matrix, (FACE_SIZE, FACE_SIZE), flags=cv2.INTER_LINEAR)


def features_of(recognizer: cv2.dnn.Net, face: np.ndarray) -> np.ndarray:
    """Return float32 [D] of an aligned face [112, 112, 3]."""
    recognizer.setInput(cv2.dnn.blobFromImage(face))  # R G B in 0..255: it scales by itself
    return recognizer.forward().reshape(-1)


def _open_detector(path: Path) -> cv2.FaceDetectorYN:
    expected = "face_detection_yunet_2023mar.onnx of OpenCV's model zoo"
    _need(path, expected)
    try:
        detector = cv2.FaceDetectorYN.create(str(path), "", (320, 320), _SURE)
        detector.detect(np.zeros((320, 320, 3), np.uint8))
    except cv2.error as error:
        raise _unfit(path, expected, error) from error
    return detector


def _open_recognizer(path: Path) -> cv2.dnn.Net:
    expected = "face_recognition_sface_2021dec.onnx of OpenCV's model zoo"
    _need(path, expected)
    try:
        # OpenCV 5's new engine takes SFace's weights for further inputs; its old one reads the file.
        engine = [cv2.dnn.ENGINE_CLASSIC] if hasattr(cv2.dnn, "ENGINE_CLASSIC") else []
        recognizer = cv2.dnn.readNetFromONNX(str(path), *engine)
        features_of(recognizer, np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8))
    except cv2.error as error:
        raise _unfit(path, expected, error) from error
    return recognizer


def _need(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ModelError(f"{path} does not exist: expected {expected}")


def _unfit(path: Path, expected: str, error: cv2.error) -> ModelError:
    lines = str(error).strip().splitlines() or ["unknown"]
    return ModelError(f"{path} cannot be read: {lines[0]}; expected {expected}")
