"""DWPose's pre- and post-processing against small ONNX models whose answers are known."""

import numpy as np
import pytest

from preparation import ConfigError
from preparation.pose import dwpose
from preparation.pose.dwpose import BODY, decode_simcc, decode_yolox, to_134_points
from preparation.pose.estimators import check_pose_estimator
from preparation.settings import Settings

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime", reason="pip install -r requirements-prepare.txt")

SIDE, HEIGHT, WIDTH = 64, 96, 72  # of the two models' inputs


def save_model(path, nodes, constants, input_shape, outputs):
    """A model with one input, named "input"."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "test", [helper.make_tensor_value_info("input", float32, input_shape)],
        [helper.make_tensor_value_info(name, float32, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))


def yolox_output() -> np.ndarray:
    """Two people, one of them twice, and a strong answer that is no person, on the grids of 64 pixels."""
    output = np.zeros((84, 85), np.float32)  # 8 x 8 cells, 4 x 4, 2 x 2
    output[:, 2:4] = -5
    # (cell, centre in pixels, size in pixels, stride, score, class)
    for cell, (x, y), (width, height), stride, score, kind in [
        (3 * 8 + 2, (20, 28), (16, 32), 8, 0.9, 0),
        (3 * 8 + 3, (21, 28), (16, 32), 8, 0.6, 0),  # the same person
        (64 + 1 * 4 + 3, (50, 20), (20, 30), 16, 0.7, 0),
        (80 + 3, (40, 40), (30, 30), 32, 0.95, 5),
    ]:
        first, columns = {8: (0, 8), 16: (64, 4), 32: (80, 2)}[stride]
        row, column = divmod(cell - first, columns)
        output[cell, :2] = x / stride - column, y / stride - row
        output[cell, 2:4] = np.log([width / stride, height / stride])
        output[cell, 4] = output[cell, 5 + kind] = np.sqrt(score)
    return output


@pytest.fixture
def model_dir(tmp_path):
    """A detector that always answers yolox_output(); a pose model that finds bright columns and rows.

    Its 133 points all lie where the picture's red is brightest, across and down.
    """
    node = onnx.helper.make_node
    zero = np.zeros((), np.float32)
    save_model(
        tmp_path / "yolox_l.onnx",
        [node("ReduceMax", ["input"], ["top"], axes=[1, 2, 3], keepdims=0),
         node("Mul", ["top", "zero"], ["none"]),
         node("Add", ["answer", "none"], ["output"])],
        {"answer": yolox_output()[None], "zero": zero}, [1, 3, SIDE, SIDE], {"output": [1, 84, 85]},
    )  # fmt: skip
    save_model(
        tmp_path / "dw-ll_ucoco_384.onnx",
        [node("Slice", ["input", "from", "to", "axis"], ["red"]),
         node("ReduceMean", ["red"], ["columns"], axes=[1, 2], keepdims=0),
         node("ReduceMean", ["red"], ["rows"], axes=[1, 3], keepdims=0),
         node("MatMul", ["columns", "spread_x"], ["x"]),
         node("MatMul", ["rows", "spread_y"], ["y"]),
         node("Expand", ["x", "shape_x"], ["simcc_x"]), node("Expand", ["y", "shape_y"], ["simcc_y"])],
        {"from": np.array([0]), "to": np.array([1]), "axis": np.array([1]),
         "spread_x": np.repeat(np.eye(WIDTH, dtype=np.float32), 2, axis=1),
         "spread_y": np.repeat(np.eye(HEIGHT, dtype=np.float32), 2, axis=1),
         "shape_x": np.array([1, 133, 2 * WIDTH]), "shape_y": np.array([1, 133, 2 * HEIGHT])},
        [1, 3, HEIGHT, WIDTH], {"simcc_x": [1, 133, 2 * WIDTH], "simcc_y": [1, 133, 2 * HEIGHT]},
    )  # fmt: skip
    return tmp_path


def test_boxes_are_decoded():
    boxes, scores = decode_yolox(yolox_output(), (SIDE, SIDE))
    np.testing.assert_allclose(boxes, [[12, 12, 28, 44], [13, 12, 29, 44], [40, 5, 60, 35]], atol=1e-3)
    np.testing.assert_allclose(scores, [0.9, 0.6, 0.7], atol=1e-6)


def test_people_are_found_in_the_frame_s_own_units(model_dir):
    estimator = dwpose.DWPose(Settings(pose_estimator="dwpose", dwpose_dir=str(model_dir)))
    people = estimator.find_people(np.zeros((128, 256, 3), np.uint8))  # scaled by 1/4 into the top left
    boxes = [person.box for person in people]
    expected = [[12 / 64, 12 / 32, 28 / 64, 1], [40 / 64, 5 / 32, 60 / 64, 1]]
    np.testing.assert_allclose(boxes, expected, atol=1e-4)


def test_points_come_back_into_the_frame(model_dir):
    """A red cross in the frame is where all of the person's points are."""
    estimator = dwpose.DWPose(Settings(pose_estimator="dwpose", dwpose_dir=str(model_dir)))
    frame = np.zeros((200, 300, 3), np.uint8)
    frame[:, 118:123, 0] = 255
    frame[88:93, :, 0] = 255
    person = dwpose.Detection((0.3, 0.2, 0.6, 0.9))
    points = estimator.key_points(frame, person)
    assert (points[:, 2] > 0.3).all()
    np.testing.assert_allclose(points[:, :2] * [300, 200], np.tile([120.5, 90.5], (134, 1)), atol=2.5)
    assert not estimator.key_points(frame, None).any()


def test_simcc_is_half_a_pixel_and_the_weaker_height():
    across, down = np.zeros((2, 20)), np.zeros((2, 30))
    across[0, 7], down[0, 11], across[1, 3], down[1, 29] = 0.8, 0.5, 0.2, 0.9
    assert decode_simcc(across, down).tolist() == [[3.5, 5.5, 0.5], [1.5, 14.5, 0.2]]


def test_133_points_become_134():
    whole = np.column_stack([np.arange(133) / 200, np.full(133, 0.5), np.full(133, 0.9)])
    points = to_134_points(whole)
    numbers = np.round(points[:, 0] * 200, 3)
    # COCO: 0 nose, 1-4 eyes and ears (left first), 5-10 arms, 11-16 legs, 17-22 feet, 23-90 face, 91- hands.
    assert numbers[:18].tolist() == [0, 5.5, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3]
    assert numbers[18:].tolist() == list(range(17, 133))
    whole[6, 2], whole[20, 2] = 0.1, 0.29  # an unsure right shoulder, an unsure foot
    points = to_134_points(whole)
    assert not points[[1, 2, 18 + 3]].any() and points[5].any()
    assert sorted(BODY.values()) == list(range(17))


def test_missing_and_wrong_files_are_named(tmp_path):
    settings = Settings(pose_estimator="dwpose", dwpose_dir=str(tmp_path))
    (tmp_path / "yolox_l.onnx").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=r"dw-ll_ucoco_384\.onnx missing; put DWPose's two models there"):
        check_pose_estimator(settings)
    (tmp_path / "dw-ll_ucoco_384.onnx").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=r"yolox_l\.onnx: is not a readable ONNX model"):
        dwpose.DWPose(settings)
