"""A pipeline of random weights, its inputs, and how tests sample with it."""

from pathlib import Path

import torch

from models import ChampModel, FrozenEncoders, create_guidance_encoders
from models.lora import LoraSettings, add_lora, save_lora
from pipelines.champ_pipeline import ChampPipeline
from training.objective import make_noise_scheduler

SIZE, NUM_FRAMES = 64, 4
SETTINGS = {"height": SIZE, "width": SIZE, "sequence_length": 8, "frame_rate": 12.5, "frame_stride": 2}


def make_pipeline(base: Path, motion_modules: bool = True) -> ChampPipeline:
    """A pipeline of random weights, those that start at zero too, so that no path is dead."""
    torch.manual_seed(0)
    encoders = create_guidance_encoders(["music", "pose"], [5, 18], 32, block_out_channels=(8, 8, 8, 32))
    model = ChampModel.from_pretrained_sd(base, encoders, motion_modules=motion_modules)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    frozen = FrozenEncoders.from_pretrained(base)
    settings = SETTINGS | ({} if motion_modules else {"sequence_length": 1})
    pipeline = ChampPipeline.from_parts(model.eval(), frozen, make_noise_scheduler(), **settings)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_inputs(num_frames: int = NUM_FRAMES, num_clips: int = 1) -> tuple[torch.Tensor, dict]:
    generator = torch.Generator().manual_seed(1)
    references = torch.rand(num_clips, 3, SIZE, SIZE, generator=generator) * 2 - 1
    guidance = {
        "music": torch.randn(num_clips, num_frames, 5, generator=generator),
        "pose": torch.rand(num_clips, num_frames, 18, 3, generator=generator),
    }
    return references, guidance


def sample(pipeline: ChampPipeline, references, guidance, *, seed: int = 0, **options):
    options = {"num_inference_steps": 2, "output_type": "latent"} | options
    generator = torch.Generator().manual_seed(seed)
    return pipeline(references, guidance, generator=generator, **options).frames


def count_calls(pipeline: ChampPipeline, monkeypatch) -> list[int]:
    """A list that receives the number of frames of each call of the denoising UNet."""
    calls, forward = [], pipeline.unet.forward

    def counted(latents, *args, **kwargs):
        calls.append(latents.shape[1])
        return forward(latents, *args, **kwargs)

    monkeypatch.setattr(pipeline.unet, "forward", counted)
    return calls


def write_adapter(base: Path, folder: Path, *parts: str, seed: int = 7) -> Path:
    """The final/ of a run with --lora_rank on a saved model, whose adapters do something."""
    model = ChampModel.from_pretrained(base)
    settings = LoraSettings(rank=2, alpha=2, parts=parts or ("unet", "reference_unet", "motion"))
    add_lora(model, settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.requires_grad:
                weights += 0.2 * torch.randn(weights.shape, generator=generator)
    save_lora(model, folder, whole_encoders=settings.trains_encoders)
    return folder
