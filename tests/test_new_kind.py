"""A new kind of track is one file of the user's, smpl_joints.py: read, checked, drawn, trained on."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import sample_guidance
import train_guidance
from datasets import DataError, GuidanceDataset, VideoReader, check_data
from datasets.checking.sample_check import CheckSettings
from datasets.data_folder import list_data_folder
from datasets.guidance import kind as kinds
from datasets.report.images import draw_sample
from models import guidance_encoder
from pipelines.panels import draw_guidance
from system import user_code

MODULE = Path(__file__).with_name("smpl_joints.py")
SMPL = {"guidance_types": ["smpl"], "guidance_input_channels": [22]}
SETTINGS = {**SMPL, "resolution": 64, "sequence_length": 4}
NUM_FRAMES = 12


@pytest.fixture(autouse=True)
def smpl_joints():
    """The user's file, run as --guidance_modules does; what it registers is taken back."""
    registries = kinds.KINDS, kinds.KINDS_OF_TYPES, guidance_encoder._REGISTRY
    before = [dict(registry) for registry in registries]
    user_code.import_user_modules([str(MODULE)])
    yield sys.modules["smpl_joints"]
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)
    del sys.modules["smpl_joints"]
    user_code._run_file.cache_clear()


@pytest.fixture
def root(tiny_data, tmp_path):
    """Joints [frame / 10, joint / 22, sample] for the three samples of 12 frames."""
    root = shutil.copytree(tiny_data, tmp_path / "data")
    (root / "smpl").mkdir()
    for number in (1, 2, 3):
        joints = np.zeros((NUM_FRAMES, 22, 3))
        joints[..., 0] = np.arange(NUM_FRAMES)[:, None] / 10
        joints[..., 1], joints[..., 2] = np.arange(22) / 22, number
        np.savez(root / "smpl" / f"dance_{number:03d}.npz", joints=joints)
    return root


def test_it_is_read_and_flipped(root, smpl_joints):
    clip = GuidanceDataset(root, **SETTINGS).read_clip(1, 3)["guidance"]["smpl"]
    assert clip.shape == (4, 22, 3) and clip.dtype == torch.float32
    np.testing.assert_allclose(clip[:, 5], [[0.3 + frame / 10, 5 / 22, 2] for frame in range(4)], rtol=1e-6)
    plain, flipping = (GuidanceDataset(root, **SETTINGS, random_flip=flip) for flip in (False, True))
    turned = 0
    for epoch in range(8):
        plain.set_epoch(epoch), flipping.set_epoch(epoch)
        one, other = plain[0], flipping[0]
        if not torch.equal(one["frames"], other["frames"]):
            turned += 1
            one["guidance"]["smpl"] = one["guidance"]["smpl"][:, smpl_joints.MIRRORED]
            one["guidance"]["smpl"][..., 0] *= -1
        assert torch.equal(one["guidance"]["smpl"], other["guidance"]["smpl"])
    assert 0 < turned < 8
    for path in (root / "smpl").iterdir():
        np.savez(path, joints=np.load(path)["joints"][:, :21])
    with pytest.raises(DataError, match="21 joints have no known sides; leave out --random_flip"):
        GuidanceDataset(root, **SETTINGS | {"guidance_input_channels": [21]}, random_flip=True)


def change(path, **arrays):
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (lambda path, joints: change(path, poses=joints), "no joints in it, but poses"),
        (lambda path, joints: change(path, joints=joints[:-1]), "11 rows of smpl for 12 frames"),
        (lambda path, joints: change(path, joints=joints[:, :20]), "row 0: shape (20, 3), expected (22, "),
        (lambda path, joints: change(path, joints=joints / (joints != 2)), "row 0: NaN or infinite values"),
        (lambda path, joints: change(path, joints=0 * joints), "the same zero values in every frame"),
        (lambda path, joints: change(path, joints=100 * joints), "a joint is 200 m from the pelvis"),
        (lambda path, joints: path.write_bytes(b"nothing"), "cannot be read (ValueError"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_its_faults_are_named(root, write, problem):
    assert check_data(root, **SETTINGS).ok
    path = root / "smpl" / "dance_002.npz"
    write(path, np.load(path)["joints"])
    fault = check_data(root, **SETTINGS).faults[0]
    assert (fault.sample_id, fault.path) == ("dance_002", str(path))
    assert problem in fault.problem and fault.fix


def test_another_version_of_it_is_checked_and_cached_anew(root, tmp_path, smpl_joints):
    """Else a mended reader would find the old faults, and a cache would keep the old numbers."""
    report = check_data(root, **SETTINGS)
    before = GuidanceDataset(root, **SETTINGS).source_files(0)["guidance/smpl"]
    assert check_data(root, **SETTINGS, earlier=report).reused
    other = tmp_path / MODULE.name
    other.write_text(MODULE.read_text().replace('["joints"]', '["joints"][..., ::-1]'))
    del sys.modules["smpl_joints"]  # as in a new process
    user_code.import_user_modules([str(other)])
    assert not check_data(root, **SETTINGS, earlier=report).reused
    now = GuidanceDataset(root, **SETTINGS).source_files(0)["guidance/smpl"]
    assert before[0] == now[0] and before[1] != now[1]


def test_it_is_drawn(root):
    folder = list_data_folder(root, ["smpl"])
    drawn = draw_sample(folder, CheckSettings({"smpl": 22}, 1, (64, 64)), folder.samples[0])
    assert len(drawn.maps["smpl"]) > 200 and not drawn.graphs
    clip = GuidanceDataset(root, **SETTINGS).read_clip(0)["guidance"]["smpl"]
    image = draw_guidance(clip, (64, 64), "smpl")
    assert image.shape == (4, 64, 64, 3) and (image[..., 0] > image[..., 2]).any()


def test_a_process_that_did_not_import_it_reads_it(root, tmp_path):
    """As a data-loading worker that is not forked."""
    dataset = pickle.dumps(GuidanceDataset(root, **SETTINGS))
    (tmp_path / "dataset").write_bytes(dataset)
    code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))[0]['guidance']['smpl'].shape)"
    command = [sys.executable, "-c", code, tmp_path / "dataset"]
    process = subprocess.run(command, cwd=MODULE.parents[1], capture_output=True, text=True)
    assert process.stdout.strip() == "torch.Size([4, 22, 3])", process.stderr


def test_it_is_trained_on_and_sampled(root, tiny_base, tmp_path):
    flags = {
        "pretrained_model_name_or_path": tiny_base, "train_data_dir": root, "output_dir": tmp_path / "out",
        "logging_dir": tmp_path / "logs", "guidance_modules": MODULE, "guidance_types": "smpl pose",
        "guidance_input_channels": "22 134", "guidance_embedding_channels": 32,
        "guidance_block_out_channels": "8 16 32 32", "resolution": 64, "sequence_length": 4, "num_workers": 0,
        "max_train_steps": 1, "lr_warmup_steps": 0, "num_validation_clips": 1, "num_inference_steps": 1,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", *str(value).split())]
    assert train_guidance.main(words) == 0
    facts = json.loads((tmp_path / "out" / "data_report.json").read_text())["samples"]["dance_001"]["smpl"]
    assert facts == {"kind": "smpl_joints", "rows": NUM_FRAMES, "fps": None, "shape": [22, 3]}
    page = (tmp_path / "out" / "data_report.html").read_text(encoding="utf-8")
    assert "12 rows of smpl joints, 22 x 3 each" in page and list((tmp_path / "out" / "samples").iterdir())
    words = ["--model_path", tmp_path / "out" / "final", "--guidance_modules", MODULE, "--panel", "--poses",
             root / "poses" / "dance_001", "--guidance", f"smpl={root / 'smpl' / 'dance_001.npz'}",
             "--reference_image", root / "reference_images" / "dance_001.png", "--num_inference_steps", 1,
             "--output", tmp_path / "dance.mp4", "--device", "cpu"]  # fmt: skip
    assert sample_guidance.main([str(word) for word in words]) == 0
    assert len(VideoReader(tmp_path / "dance_panel.mp4")) == NUM_FRAMES
