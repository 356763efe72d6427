"""What tests share: one CPU thread, a tiny base model in Stable Diffusion's layout, a tiny data folder."""

import json
import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from datasets import write_video
from demo.dancer import draw_lots, key_points, standing
from models import MusicToPoseModel
from models.music_to_pose.sampling import make_sampler
from pipelines.music_to_pose_pipeline import MusicToPosePipeline

REPOSITORY = Path(__file__).parents[1]
NUM_KEY_POINTS, NUM_MUSIC_FEATURES = 134, 35
DANCER = draw_lots(np.random.default_rng(1))

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # where the tests run in the background of a script
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps its settings for the life of a process; a test starts without another's."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()


@pytest.fixture
def fresh_compiler():
    """What a run sets for torch.compile in its process, and the code of other tests, are forgotten."""
    import torch._dynamo  # slow to load: only tests that compile need it
    import torch._functorch.config
    import torch._inductor.config

    torch._dynamo.reset()
    with (
        torch._dynamo.config.patch(recompile_limit=8, optimize_ddp=True, error_on_recompile=False),
        torch._functorch.config.patch(force_non_lazy_backward_lowering=False),
        torch._inductor.config.patch(deterministic=False),
    ):
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The original's tensors; tests that need them are skipped where they are not at hand."""
    path = REPOSITORY.parent / "shared" / "golden"
    if not path.is_dir():
        pytest.skip(f"the original's tensors are not here ({path})")
    return path


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A small random Stable Diffusion folder: unet/, vae/, image_encoder/; 8 pixels per latent."""
    path = tmp_path_factory.mktemp("tiny_base")
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2,
    ).save_pretrained(path / "unet")  # fmt: skip
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
    ).save_pretrained(path / "vae")  # fmt: skip
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=56,
            image_size=224, projection_dim=32,
        )
    ).save_pretrained(path / "image_encoder")  # fmt: skip
    return path


@pytest.fixture(scope="session")
def tiny_kl(tmp_path_factory) -> Path:
    """A folder with a small random AutoencoderKL, Stable Diffusion's kind: its latents are sampled."""
    path = tmp_path_factory.mktemp("tiny_kl")
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=4 * ("DownEncoderBlock2D",), up_block_types=4 * ("UpDecoderBlock2D",),
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, layers_per_block=1,
    ).save_pretrained(path / "vae")  # fmt: skip
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """A data folder: three 64x64 videos of 12 frames, 8 a second, with poses, music and reference images."""
    return write_tiny_data(tmp_path_factory.mktemp("tiny_data"), num_videos=3)


@pytest.fixture(scope="session")
def write_data():
    """The function that writes such a folder: write_data(root, num_videos, num_frames=12, size=64)."""
    return write_tiny_data


def write_tiny_data(root: Path, num_videos: int, num_frames: int = 12, size: int = 64) -> Path:
    """Write a bright square per video that moves as its key points say; return the folder."""
    for video in range(num_videos):
        name = f"dance_{video + 1:03d}"
        random = np.random.default_rng(video)
        colour = random.integers(96, 255, 3)
        frames = np.full((num_frames, size, size, 3), 16 * (video + 1), np.uint8)
        for folder in ("poses", "music_features"):
            (root / folder / name).mkdir(parents=True)
        for frame in range(num_frames):
            x = 0.25 + 0.5 * frame / num_frames
            y = 0.5 + 0.1 * np.sin(frame + video)  # slowly enough for one person
            left, top = round((x - 0.15) * size), round((y - 0.15) * size)
            frames[frame, top : top + 20, left : left + 20] = colour
            offsets = random.uniform(-0.15, 0.15, (NUM_KEY_POINTS, 2))
            keypoints = [[x + dx, y + dy, 1.0] for dx, dy in offsets.tolist()]
            pose = {"keypoints": keypoints, "pose_type": "dance", "frame_id": frame}
            (root / "poses" / name / f"frame_{frame:03d}.json").write_text(json.dumps(pose))
            features = random.normal(size=NUM_MUSIC_FEATURES).astype(np.float32)
            np.save(root / "music_features" / name / f"frame_{frame:03d}.npy", features)
        write_video(root / "videos" / f"{name}.mp4", frames, frame_rate=8)
        (root / "reference_images").mkdir(exist_ok=True)
        Image.fromarray(frames[0]).save(root / "reference_images" / f"{name}.png")
    return root


@pytest.fixture(scope="session")
def tiny_dancer(tmp_path_factory) -> Path:
    """A saved model of dances, small and random: 134 points, 35 features as of aist35, 8 frames a second."""
    path = tmp_path_factory.mktemp("tiny_dancer") / "final"
    torch.manual_seed(0)
    model = MusicToPoseModel(
        NUM_KEY_POINTS, NUM_MUSIC_FEATURES, frame_rate=8.0, sequence_length=8, hidden_size=16, num_layers=1,
        num_heads=2,
    )  # fmt: skip
    torch.nn.init.normal_(model.pose_out.weight, std=0.05)
    MusicToPosePipeline(model, make_sampler(), music_recipe="aist35").save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def standing_pose() -> np.ndarray:
    """Key points [134, 3] of a drawn person who stands, in 0..1 of a square frame."""
    return key_points(DANCER, standing(DANCER))


@pytest.fixture(scope="session")
def standing_file(standing_pose, tmp_path_factory) -> Path:
    """The same person as a pose file that states the frame's size, of no frame's name."""
    path = tmp_path_factory.mktemp("standing") / "dancer.json"
    path.write_text(json.dumps({"keypoints": standing_pose.tolist(), "width": 64, "height": 64}))
    return path


@pytest.fixture
def flags(tiny_base, tiny_data, tmp_path):
    """Flags of a quick run; validation only at its end, of one clip."""
    settings = {
        "pretrained_model_name_or_path": tiny_base,
        "train_data_dir": tiny_data,
        "output_dir": tmp_path / "out",
        "logging_dir": tmp_path / "logs",
        "guidance_types": "music pose",
        "guidance_input_channels": "35 134",
        "guidance_embedding_channels": 32,
        "guidance_block_out_channels": "8 16 32 32",
        "resolution": 64,
        "sequence_length": 4,
        "num_workers": 0,
        "max_train_steps": 2,
        "lr_warmup_steps": 0,
        "validation_steps": 100,
        "num_validation_clips": 1,
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
    }
    return [word for name, value in settings.items() for word in (f"--{name}", *str(value).split())]
