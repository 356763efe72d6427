"""Sizes of the training-step benchmark: the same networks, clips and shapes for our trainer and the original.

Standard library only: two interpreters with different packages read it.
"""

from dataclasses import dataclass, replace

GUIDANCE_TYPES = ("depth", "normal", "semantic_map", "dwpose")  # CHAMP's four, images of 3 channels each
STAGES = ("joint", "image", "motion")


@dataclass(frozen=True)
class Size:
    """Widths of the networks and the shape of one step's clips."""

    unet_channels: tuple[int, ...]
    layers_per_block: int
    token_width: int  # of the image token
    guidance_channels: tuple[int, ...]
    vae_channels: tuple[int, ...]
    image_encoder: dict
    resolution: int
    num_heads: int  # of the UNets and their motion modules: as wide as real ones, 32 channels or more
    frames: dict  # {stage: frames of a clip}
    image_batch_size: int = 4  # of the image stage
    clip_batch_size: int = 1  # of the others
    settings: dict | None = None  # of every run, ours and the original's: precision, checkpointing, ...

    def batch_shape(self, stage: str) -> tuple[int, int]:
        """Return (clips of a step, frames of a clip)."""
        return (self.image_batch_size, 1) if stage == "image" else (self.clip_batch_size, self.frames[stage])

    def reshaped(self, *, batch_size: int, num_frames: int, resolution: int) -> "Size":
        """Return the same networks for steps of another shape."""
        return replace(
            self, resolution=resolution, frames=dict.fromkeys(self.frames, num_frames),
            image_batch_size=batch_size, clip_batch_size=batch_size,
        )  # fmt: skip

    def unet_config(self) -> dict:
        """Return the arguments of a Stable Diffusion 1.x UNet."""
        return {
            "sample_size": self.resolution // 8, "block_out_channels": self.unet_channels,
            "layers_per_block": self.layers_per_block, "cross_attention_dim": self.token_width,
            "attention_head_dim": self.num_heads,  # a number, whatever its name
        }  # fmt: skip

    @property
    def num_guidance_heads(self) -> int:
        """Return the heads of the guidance encoders' attention, 32 channels each, as CHAMP's."""
        return self.guidance_channels[-1] // 32

    def vae_config(self) -> dict:
        levels = len(self.vae_channels)
        return {
            "block_out_channels": self.vae_channels, "layers_per_block": self.layers_per_block,
            "down_block_types": levels * ("DownEncoderBlock2D",), "norm_num_groups": 32,
            "up_block_types": levels * ("UpDecoderBlock2D",), "latent_channels": 4,
        }  # fmt: skip

    def image_encoder_config(self) -> dict:
        return {"image_size": 224, "projection_dim": self.token_width, **self.image_encoder}


def size_of(spec: dict) -> Size:
    """Return the size that a process of the benchmark is told: one of SIZES, in its own shape or another."""
    size = SIZES[spec["size"]]
    return size.reshaped(**spec["shape"]) if spec.get("shape") else size


SIZES = {
    "tiny": Size(
        unet_channels=(32, 32, 32, 32), layers_per_block=1, token_width=32,
        guidance_channels=(16, 32, 32, 32), vae_channels=(32, 32, 32, 32),
        image_encoder={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
                       "num_attention_heads": 1, "patch_size": 56},
        resolution=128, num_heads=1, frames={"joint": 2, "motion": 2}, image_batch_size=2, settings={},
    ),
    # For series of many points on a CPU.
    "small": Size(
        unet_channels=(32, 64, 64, 64), layers_per_block=1, token_width=64,
        guidance_channels=(16, 32, 32, 64), vae_channels=(32, 32, 64, 64),
        image_encoder={"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
                       "num_attention_heads": 2, "patch_size": 28},
        resolution=256, num_heads=1, frames={"joint": 8, "motion": 8},
        settings={"gradient_checkpointing": "none"},
    ),
    # The original's guidance encoders, full size; UNet and VAE a fifth and a fourth as wide as SD 1.5's.
    "medium": Size(
        unet_channels=(64, 128, 128, 128), layers_per_block=2, token_width=128,
        guidance_channels=(16, 32, 96, 256), vae_channels=(32, 64, 128, 128),
        image_encoder={"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6,
                       "num_attention_heads": 4, "patch_size": 14},
        resolution=256, num_heads=2, frames={"joint": 8, "motion": 8}, settings={},
    ),
    # Stable Diffusion 1.5, CLIP ViT-L/14; the image stage at 512 too.
    "sd15": Size(
        unet_channels=(320, 640, 1280, 1280), layers_per_block=2, token_width=768,
        guidance_channels=(16, 32, 96, 256), vae_channels=(128, 256, 512, 512),
        image_encoder={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                       "num_attention_heads": 16, "patch_size": 14},
        resolution=512, num_heads=8, frames={"joint": 16, "motion": 24},
        settings={"mixed_precision": "bf16", "gradient_checkpointing": "all"},
    ),
}  # fmt: skip
