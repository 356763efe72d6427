"""A batch as the networks take it: encoded now, or read from the caches."""

from collections.abc import Sequence

import torch

FEATURES = ("reference_bank", "guidance_features")  # what a feature cache adds to a batch


def move_batch(batch: dict, device: torch.device) -> dict:
    """Return the batch with what the networks see on `device`; the rest, such as times in float64, stays."""
    moved = dict(batch)
    for name, value in batch.items():
        if isinstance(value, dict):
            moved[name] = {key: tensor.to(device, non_blocking=True) for key, tensor in value.items()}
        elif isinstance(value, torch.Tensor) and not name.startswith("frame_"):
            moved[name] = value.to(device, non_blocking=True)
    return moved


def encode_batch(frozen, batch: dict, seeds: Sequence[int]) -> tuple[torch.Tensor, dict]:
    """Return latents [B, F, 4, h, w] and the conditions the objective takes.

    The batch has images, or what a latent cache keeps of them.
    The VAE samples clip b with seeds[b], on the CPU: the same numbers in any batch and on any device.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if "latent_mean" in batch:
        latents = frozen.sample_latents(batch["latent_mean"], batch.get("latent_std"), generators)
        reference_latents, image_tokens = batch["reference_latents"], batch["image_tokens"]
    else:
        latents = frozen.encode_frames(batch["frames"], generator=generators)
        reference_latents = frozen.encode_reference(batch["reference_image"])
        image_tokens = frozen.encode_image_tokens(batch["clip_image"])
    # The VAE may leave channels last: the same numbers in another order in memory give other roundings.
    return latents.float().contiguous(), {
        "reference_latents": reference_latents.float().contiguous(),
        "image_tokens": image_tokens.float().contiguous(),
        "guidance": batch["guidance"],
        **{name: batch[name] for name in FEATURES if name in batch},
    }
