"""The examples of the documents run as they stand."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .reading import (
    DOCUMENTS,
    GUIDE,
    README,
    REPOSITORY,
    commands,
    each_document,
    fenced_blocks,
    script_commands,
)  # fmt: skip


def example_files() -> dict[str, str]:
    """{file name: text} of the guide's Python blocks that begin with their file's name."""
    blocks = fenced_blocks(GUIDE, "python")
    return {match[1]: block for block in blocks if (match := re.match(r"# (\w+\.py)\n", block))}


@pytest.fixture
def example_dir(tmp_path, monkeypatch):
    """A folder with the guide's example files, a small demo data set, the repository's configs and assets."""
    from demo.data import main as make_demo_data

    for name, text in example_files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("configs", "assets"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    options = ["--num_train", "2", "--num_validation", "2", "--num_workers", "1"]
    assert make_demo_data(["--output_dir", str(tmp_path / "demo_data"), *options]) == 0
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merge_flags(*commands: list[str]) -> list[str]:
    """One command line with the flags of all; a flag given again has its last value."""
    values: dict[str, list[str]] = {}
    for arguments in commands:
        flag = None
        for word in arguments:
            if word.startswith("--"):
                flag = word
                values[flag] = []
            else:
                values[flag].append(word)
    return [word for flag, words in values.items() for word in (flag, *words)]


def test_custom_type_and_custom_loss_examples_train(example_dir):
    """The guide's data script, encoder and loss in one short run, as its own commands start them."""
    for words in commands(GUIDE):
        if words[1:2] == ["make_energy.py"]:
            subprocess.run([sys.executable, *words[1:]], check=True)
    words = [word.rpartition("=")[2] for path in DOCUMENTS for command in commands(path) for word in command]
    assert [word for word in words if word.startswith("demo_data/") and not Path(word).exists()] == []
    examples = [
        arguments
        for _, arguments in script_commands(GUIDE, "train_guidance.py")
        if {"--guidance_modules", "--loss"} & set(arguments)
    ]
    assert len(examples) == 2
    short = "--max_train_steps 2 --lr_warmup_steps 0 --validation_steps 2 --num_validation_clips 2"
    short += " --num_inference_steps 1 --resolution 64 --sequence_length 2 --train_batch_size 1"
    short += " --num_workers 0"
    arguments = merge_flags(*examples, shlex.split(short))
    command = [sys.executable, str(REPOSITORY / "train_guidance.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    final_dir = example_dir / arguments[arguments.index("--output_dir") + 1] / "final"
    assert (final_dir / "model_index.json").is_file()
    check_energy_was_trained(example_dir, final_dir)


def check_energy_was_trained(example_dir: Path, final_dir: Path) -> None:
    """The model needs the user's module to load, learned something from the type, and samples with it."""
    import sample_guidance
    from models import ChampModel, ModelError, guidance_encoder

    with pytest.raises(ModelError, match="--guidance_modules"):
        ChampModel.from_pretrained(final_dir)
    sampling = next(arguments for _, arguments in script_commands(GUIDE, "sample_guidance.py")
                    if "--guidance_modules" in arguments)  # fmt: skip
    short = ["--num_inference_steps", "1", "--num_frames", "2", "--model_path", str(final_dir)]
    try:
        assert sample_guidance.main([*sampling, *short]) == 0
        encoders = ChampModel.from_pretrained(final_dir).guidance_encoders
    finally:
        guidance_encoder._REGISTRY.pop("energy", None)
    assert (example_dir / sampling[sampling.index("--output") + 1]).is_file()
    parameters = list(encoders.projections["energy"].parameters() if "energy" in encoders.projections
                      else encoders.encoders["energy"].linear_out.parameters())  # fmt: skip
    assert any(parameter.any() for parameter in parameters)  # a projection starts at zero


def load_file(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_spatial_encoder_example(tmp_path):
    from models import create_guidance_encoders, guidance_encoder

    (tmp_path / "my_depth.py").write_text(example_files()["my_depth.py"], encoding="utf-8")
    load_file(tmp_path / "my_depth.py")
    try:
        encoder = create_guidance_encoders(["inverse_depth"], [3], 64)["inverse_depth"]
        torch.nn.init.normal_(encoder.conv_out.weight)
        far, near = (encoder(torch.full((1, 2, 3, 32, 32), value)) for value in (0.0, 1.0))
    finally:
        del guidance_encoder._REGISTRY["inverse_depth"]
    assert far.shape == (1, 2, 64, 4, 4) and not torch.equal(far, near)


def loss_examples() -> list[str]:
    blocks = [block for document in DOCUMENTS for block in fenced_blocks(document, "python")]
    return [block for block in blocks if "def custom_loss" in block]


@pytest.mark.parametrize("block", loss_examples())
def test_loss_example(block):
    names: dict = {}
    exec(block, names)
    target = torch.zeros(2, 3, 4, 8, 8)
    prediction = torch.rand(2, 3, 4, 8, 8, requires_grad=True)
    guidance = {"pose": torch.rand(2, 3, 134, 3)}
    loss = names["custom_loss"](prediction, target, guidance)
    loss.backward()
    assert loss.ndim == 0 and loss > 0 and prediction.grad.any()
    constant = torch.ones_like(prediction)  # an error that does not change over the frames
    assert names["custom_loss"](constant, target, guidance) == 0
    assert names["custom_loss"](constant[:, :1], target[:, :1], {}) == 0


def test_readme_vector_encoder_example():
    from models import create_guidance_encoders, guidance_encoder

    blocks = fenced_blocks(REPOSITORY / "README.md", "python")
    exec(next(block for block in blocks if "register_guidance_encoder" in block), {})
    try:
        encoder = create_guidance_encoders(["emotion"], [5], 64)["emotion"]
    finally:
        del guidance_encoder._REGISTRY["emotion"]
    assert encoder.guidance_kind == "vector" and encoder(torch.rand(2, 3, 5)).shape == (2, 3, 64)


@pytest.fixture
def registries(monkeypatch):
    """Forget, after the test, what its example registers."""
    from evaluation import validation_metrics
    from models import guidance_encoder

    monkeypatch.setattr(guidance_encoder, "_REGISTRY", dict(guidance_encoder._REGISTRY))
    monkeypatch.setattr(validation_metrics, "_METRICS", dict(validation_metrics._METRICS))


@each_document
def test_metric_example(document, registries):
    from evaluation import validation_metrics

    names: dict = {}
    blocks = fenced_blocks(document, "python")
    exec(next(block for block in blocks if "register_validation_metric" in block), names)
    sampled = torch.zeros(3, 3, 8, 8)
    sampled[1] = 1
    run = validation_metrics.ValidationRun(None, None, [], 1, {}, sample=lambda shown: sampled)
    assert validation_metrics._METRICS["flicker"](run) == {"flicker": 1.0}


def test_readme_python_examples_run_in_order(example_dir, registries):
    """The chapter's blocks as they stand, with the demo's data and a model that has learned nothing."""
    from models import ChampModel, FrozenEncoders, create_guidance_encoders
    from pipelines.champ_pipeline import ChampPipeline
    from training.objective import make_noise_scheduler

    encoders = create_guidance_encoders(["music", "pose"], [35, 134], 128)
    model = ChampModel.from_pretrained_sd("assets/tiny_base", encoders)
    frozen = FrozenEncoders.from_pretrained("assets/tiny_base")
    ChampPipeline.from_parts(
        model, frozen, make_noise_scheduler("v_prediction"), height=128, width=128, sequence_length=8,
        frame_rate=8.0,
    ).save_pretrained("demo_output/final")  # fmt: skip

    names: dict = {}
    for block in fenced_blocks(README, "python"):
        if block in README.read_text(encoding="utf-8").split("\n## From Python\n")[1]:
            exec(block, names)
    assert names["frames"].shape == names["result"].frames[0].shape == (8, 128, 128, 3)
    assert Path("dance.mp4").stat().st_size > 0
    assert names["prediction"].shape == names["latents"].shape and names["prediction"].isfinite().all()
    assert ChampModel.from_pretrained("my_model").guidance_encoders.guidance_types == ["pose", "speed"]
