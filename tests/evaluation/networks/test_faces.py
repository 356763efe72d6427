"""Faces turned upright, and the two ONNX files, tiny ones made on the spot."""

import cv2
import numpy as np
import pytest

from evaluation.networks import faces, load_face_network
from evaluation.networks.faces import FACE_POINTS, FaceFiles, aligned_face
from system.errors import ModelError


def test_a_turned_face_is_turned_back():
    upright = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8), (0, 0), 4
    )
    angle, scale = np.deg2rad(30), 1.7
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = np.array([150.0, 60.0])
    frame = cv2.warpAffine(upright, np.column_stack([turn, shift]), (400, 400))
    found = aligned_face(frame, FACE_POINTS @ turn.T + shift)
    assert np.abs(found.astype(int) - upright)[8:-8, 8:-8].mean() < 2


def test_files_that_are_not_there_or_no_models(tmp_path):
    (tmp_path / "face.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError, match="nothing.onnx does not exist: expected face_detection_yunet"):
        load_face_network(tmp_path / "nothing.onnx", tmp_path / "face.onnx")
    with pytest.raises(ModelError, match="face.onnx cannot be read: .*; expected face_detection_yunet"):
        load_face_network(tmp_path / "face.onnx", tmp_path / "face.onnx")


class Detector:
    """Finds what it is told, in pixels of the image that it is shown."""

    def __init__(self, *faces):
        self.faces, self.shown = np.array(faces, np.float32).reshape(-1, 15), None

    def setInputSize(self, size):  # noqa: N802 (OpenCV's name)
        self.size = size

    def detect(self, image):
        assert image.shape[1::-1] == self.size
        self.shown = image
        return 1, self.faces if len(self.faces) else None


def face(width, points):
    return [0, 0, width, width, *points.reshape(-1), 0.9]


@pytest.fixture
def files(monkeypatch):
    monkeypatch.setattr(faces, "_open_detector", lambda path: Detector())
    monkeypatch.setattr(faces, "_open_recognizer", lambda path: None)
    monkeypatch.setattr(faces, "features_of", lambda _, image: image.reshape(-1, 3).mean(axis=0))
    return FaceFiles("detector.onnx", "recognizer.onnx")


def test_the_largest_face_counts(files):
    near, far = 3 * FACE_POINTS, FACE_POINTS
    files._detector = Detector(face(30, far), face(90, near))
    frame = np.zeros((400, 500, 3), np.uint8)
    frame[..., 0] = 200
    assert files.find(frame) == pytest.approx(near, rel=1e-5)
    assert (files._detector.shown[..., 2] == 200).all()  # B G R
    assert files.describe(frame) == pytest.approx([200, 0, 0])
    files._detector = Detector()
    assert files.describe(frame) is None


def test_faces_of_large_frames_are_found_in_smaller_ones(files):
    files._detector = Detector(face(90, FACE_POINTS))
    found = files.find(np.zeros((1280, 960, 3), np.uint8))
    assert files._detector.shown.shape == (640, 480, 3) and found == pytest.approx(2 * FACE_POINTS, rel=1e-5)


def test_a_recognizer_that_opencv_reads(tmp_path):
    onnx = pytest.importorskip("onnx", reason="pip install -r requirements-dev.txt")
    helper, numbers = onnx.helper, onnx.TensorProto.FLOAT
    image = helper.make_tensor_value_info("data", numbers, [1, 3, 112, 112])
    out = helper.make_tensor_value_info("fc1", numbers, [1, 3])
    nodes = [
        helper.make_node("GlobalAveragePool", ["data"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["fc1"]),
    ]
    graph = helper.make_graph(nodes, "recognizer", [image], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "recognizer.onnx")
    recognizer = faces._open_recognizer(tmp_path / "recognizer.onnx")
    flat = np.full((112, 112, 3), (10, 20, 30), np.uint8)
    assert faces.features_of(recognizer, flat) == pytest.approx([10, 20, 30])
    with pytest.raises(ModelError, match="recognizer.onnx cannot be read: .*; expected face_detection_yunet"):
        faces._open_detector(tmp_path / "recognizer.onnx")
