"""CHAMP (arXiv:2403.14781): reference UNet, denoising UNet and guidance encoders as one module.

Read `forward`: the reference image is encoded once into a bank of features, the guidance into features,
and the denoising UNet predicts with both. Loading and saving are in `weights.py`.
"""

import functools

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from models.guidance_group import GuidanceEncoders, GuidanceFeatures
from models.recomputation import checkpoint_function
from system.errors import ModelError

from .attention_backend import check_attention_backend
from .denoising_unet import ImageDenoisingUNet, MotionDenoisingUNet
from .reference_attention import ImageTokenAttention, Reference, ReferenceWriteAttention, WrittenBank
from .weights import ChampWeights


class ChampModel(ChampWeights, nn.Module):
    """B clips of F frames; latents [B, F, 4, h, w]."""

    def __init__(
        self,
        unet: MotionDenoisingUNet | ImageDenoisingUNet,
        reference_unet: UNet2DConditionModel,
        guidance_encoders: GuidanceEncoders,
    ):
        super().__init__()
        self.unet = unet
        self.reference_unet = reference_unet
        self.guidance_encoders = guidance_encoders
        self.set_attention_backend("sdpa")
        self.untrainable_names = frozenset(_reference_tail(reference_unet) | self._unused_cross_attention())
        for name, parameter in self.named_parameters():
            if name in self.untrainable_names:
                parameter.requires_grad_(False)

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        reference_latents: Tensor,
        image_tokens: Tensor,
        guidance: dict[str, Tensor],
        reference_mask: Tensor | None = None,
        guidance_mask: dict[str, Tensor] | None = None,
        reference_bank: dict[str, Tensor] | None = None,
        guidance_features: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the prediction [B, F, 4, h, w].

        noisy_latents [B, F, 4, h, w]; timesteps int64 [B]; reference_latents [B, 4, h, w];
        image_tokens [B, L, D]; guidance {type: [B, F, ...]}, a type left out contributes nothing;
        reference_mask bool [B], False = without reference;
        guidance_mask {type: bool [B]}, False = this type contributes nothing for that sample.
        Known already, and then not computed: reference_bank (of `encode_reference`) and
        guidance_features {type: [B, F, ...]} (of `GuidanceEncoders.encode_type`).
        """
        bank = reference_bank or self.encode_reference(reference_latents, image_tokens)
        features = self.encode_guidance(guidance, noisy_latents.shape[-2:], guidance_mask, guidance_features)
        return self.denoise(noisy_latents, timesteps, image_tokens, bank, features, reference_mask)

    def encode_reference(self, reference_latents: Tensor, image_tokens: Tensor) -> dict[str, Tensor]:
        """Return {processor name: [B, L, C]} for reference_latents [B, 4, h, w], image_tokens [B, L, D]."""
        self._check_tokens(image_tokens)
        written = WrittenBank()
        self.reference_unet(
            reference_latents,
            torch.zeros(len(reference_latents), dtype=torch.int64, device=reference_latents.device),
            image_tokens,
            cross_attention_kwargs={"bank_to_write": written},
            return_dict=False,
        )
        bank = dict(written.tokens)
        # Checkpointed blocks keep `written` for their second run; with tensors in it the graph would keep
        # itself alive.
        written.tokens.clear()
        return bank

    def project_reference(self, bank: dict[str, Tensor]) -> dict[str, Reference]:
        """Return {processor name: (keys, values)}, each [B, L, C], which `denoise` takes for the bank.

        For sampling, where all steps and windows read the same. What an offloaded block would need stays as
        it is in the bank: its weights come when it is called, and then it projects by itself.
        """
        projected: dict[str, Reference] = dict(bank)
        for name, tokens in bank.items():
            attn = self.unet.get_submodule(name.removesuffix(".processor"))
            if next(attn.parameters()).device == tokens.device:
                projected[name] = attn.processor.project(attn, tokens)
        return projected

    def encode_guidance(
        self,
        guidance: dict[str, Tensor],
        latent_size: tuple[int, int],
        guidance_mask: dict[str, Tensor] | None = None,
        guidance_features: dict[str, Tensor] | None = None,
    ) -> GuidanceFeatures:
        """Return features for the denoising UNet; arguments as of `forward`, latent_size = (h, w)."""
        return self.guidance_encoders(guidance, latent_size, guidance_mask, guidance_features)

    def denoise(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        image_tokens: Tensor,
        bank: dict[str, Reference] | None,
        features: GuidanceFeatures,
        reference_mask: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction [B, F, 4, h, w].

        bank: of `encode_reference` or `project_reference`; None = no sample has a reference.
        """
        self._check_tokens(image_tokens)
        return self.unet(
            noisy_latents,
            timesteps,
            image_tokens,
            features,
            cross_attention_kwargs={"reference_bank": bank, "reference_mask": reference_mask},
        )

    def _check_tokens(self, image_tokens: Tensor) -> None:
        found, width = image_tokens.shape[-1], self.reference_unet.config.cross_attention_dim
        if found != width:
            problem = f"image tokens are {found} wide, the UNet's cross-attention takes {width}"
            fix = f"choose an image encoder whose projection_dim is {width} (--image_encoder_name_or_path)"
            raise ModelError(f"{problem}: {fix}")

    def enable_gradient_checkpointing(self, level: str = "all") -> None:
        """Recompute activations in the backward pass: those of `level`, one of CHECKPOINTING_LEVELS.

        "selective" keeps convolutions, matrix products and attention, "all" only the inputs of the blocks.
        """
        function = checkpoint_function(level)
        for part in self.children():
            if function is None:
                part.disable_gradient_checkpointing()
            else:
                part.enable_gradient_checkpointing(function)

    def disable_gradient_checkpointing(self) -> None:
        self.enable_gradient_checkpointing("none")

    def set_attention_backend(self, backend: str) -> None:
        """Set "sdpa" (PyTorch's own) or "xformers". Raise ModelError when it cannot run here."""
        check_attention_backend(backend)
        self.unet.set_attention_backend(backend)
        _set_reference_processors(self.reference_unet, backend)
        # diffusers' own class, so its default is replaced here: it would no longer write to the bank.
        default = functools.partial(_set_reference_processors, self.reference_unet, "sdpa")
        self.reference_unet.set_default_attn_processor = default

    @property
    def has_motion_modules(self) -> bool:
        return isinstance(self.unet, MotionDenoisingUNet)

    def motion_parameter_names(self) -> set[str]:
        """Return the names of the motion modules' parameters."""
        return {name for name, _ in self.named_parameters() if ".motion_modules." in name}

    def _unused_cross_attention(self) -> set[str]:
        """Return what never gets a gradient in attention to one image token: queries, keys and their norm."""
        parts = (".norm2.", ".attn2.to_q.", ".attn2.to_k.")
        return {
            name
            for name, _ in self.named_parameters()
            if ".attentions." in name and name.startswith(("unet.", "reference_unet."))
            if any(part in name for part in parts)
        }


def _set_reference_processors(reference_unet: UNet2DConditionModel, backend: str) -> None:
    names = [name for name in reference_unet.attn_processors if name.endswith("attn1.processor")]
    last_name = _last_attention(reference_unet) + ".attn1.processor"
    processors = {name: ReferenceWriteAttention(name, backend, name == last_name) for name in names}
    for name in reference_unet.attn_processors:
        processors.setdefault(name, ImageTokenAttention(backend))
    reference_unet.set_attn_processor(processors)


def _last_attention(reference_unet: UNet2DConditionModel) -> str:
    """Return the name of the transformer block that writes to the bank last."""
    for index, block in reversed(list(enumerate(reference_unet.up_blocks))):
        if getattr(block, "has_cross_attention", False):
            layer = len(block.attentions) - 1
            depth = len(block.attentions[-1].transformer_blocks) - 1
            return f"up_blocks.{index}.attentions.{layer}.transformer_blocks.{depth}"
    raise ModelError("the base UNet has no attention in its up blocks: take a Stable Diffusion 1.x model")


def _reference_tail(reference_unet: UNet2DConditionModel) -> set[str]:
    """Return the reference UNet's parameters after the last bank write, which never get a gradient."""
    last_block = _last_attention(reference_unet)  # up_blocks.3.attentions.2.transformer_blocks.0
    transformer = last_block.rsplit(".transformer_blocks.", 1)[0]
    up_block = transformer.rsplit(".attentions.", 1)[0]
    later = range(int(up_block.split(".")[1]) + 1, len(reference_unet.up_blocks))
    tail = ("conv_norm_out.", "conv_out.", f"{transformer}.proj_out.", f"{up_block}.upsamplers.")
    tail += tuple(f"up_blocks.{index}." for index in later)
    return {
        f"reference_unet.{name}"
        for name, _ in reference_unet.named_parameters()
        if name.startswith(tail)
        or (name.startswith(f"{last_block}.") and not name.startswith(f"{last_block}.norm1."))
    }
