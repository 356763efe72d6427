"""The denoising UNets: stock diffusers UNets with a short forward of their own.

CHAMP adds the guidance to the output of `conv_in` and reads the reference bank in every spatial
self-attention; neither needs a copied block. `MotionDenoisingUNet` has AnimateDiff motion modules
(arXiv:2307.04725) after every pair of residual and attention layers, `ImageDenoisingUNet` has none (CHAMP's
first stage).
"""

import functools
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel, UNetMotionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from torch import Tensor, nn

from models.guidance_group import GuidanceFeatures
from models.recomputation import call_recomputed, checkpoint_function, takes_blocks
from system.errors import ModelError

from .feed_forward import take_pieces
from .reference_attention import ImageTokenAttention, ReferenceReadAttention, SelfAttention

# CHAMP and AnimateDiff normalise with 32 groups in the motion modules whatever the UNet's own number is.
MOTION_NORM_GROUPS = 32

# What the forward below takes for granted of a Stable Diffusion UNet; any other value would be silently
# wrong.
_EXPECTED_CONFIG = {
    "attention_type": "default",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,  # 9 for inpainting
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "out_channels": 4,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
    **dict.fromkeys(("center_input_sample", "dual_cross_attention", "only_cross_attention"), False),
    **dict.fromkeys(("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"), None),
    **dict.fromkeys(("num_class_embeds", "time_cond_proj_dim"), None),
    **dict.fromkeys(("time_embedding_act_fn", "time_embedding_dim"), None),
}


def check_base_unet(unet: UNet2DConditionModel) -> None:
    """Raise ModelError when `unet` is not of the Stable Diffusion 1.x kind that CHAMP is built on."""
    for name, expected in _EXPECTED_CONFIG.items():
        value = unet.config.get(name, expected)
        if value != expected:
            problem = f"the base UNet has {name}={value!r}; CHAMP needs {expected!r}"
            raise ModelError(f"{problem}: take a Stable Diffusion 1.x model")


class MotionModule(AnimateDiffTransformer3D):
    """Temporal transformer over the frames of each latent pixel; normalises per frame (diffusers: across
    frames).

    `proj_out` starts at zero, so that fresh motion modules leave the image model's output as it is.
    """

    def __init__(self, stock: AnimateDiffTransformer3D):
        channels = stock.in_channels
        if channels % MOTION_NORM_GROUPS != 0:
            needed = f"motion modules need channels divisible by {MOTION_NORM_GROUPS}"
            raise ModelError(f"{needed}, the base UNet has a block of {channels}")
        super().__init__(
            num_attention_heads=stock.num_attention_heads,
            attention_head_dim=stock.attention_head_dim,
            in_channels=channels,
            num_layers=0,  # the layers themselves are taken over below
            norm_num_groups=MOTION_NORM_GROUPS,
        )
        self.proj_in = stock.proj_in
        self.transformer_blocks = stock.transformer_blocks
        self.proj_out = stock.proj_out
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)
        self.checkpoint_function = None  # see models/recomputation: calls the whole module
        self.block_function = None  # calls its transformer blocks one by one

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states=None,
        timestep=None,
        class_labels=None,
        num_frames: int = 1,
        cross_attention_kwargs=None,
    ) -> Tensor:
        """Return [B*F, C, h, w] of the same; the other arguments are diffusers', only num_frames is used."""
        if self.checkpoint_function is not None and torch.is_grad_enabled():
            return self.checkpoint_function(self._attend_over_frames, hidden_states, num_frames)
        return self._attend_over_frames(hidden_states, num_frames)

    def _attend_over_frames(self, hidden_states: Tensor, num_frames: int) -> Tensor:
        height, width = hidden_states.shape[-2:]
        call = self.block_function if torch.is_grad_enabled() else None
        if call is None:
            tokens = self._enter(hidden_states, num_frames)
        else:  # only the norm is recomputed: nothing asks for the product that follows
            tokens = call_recomputed(self._enter, hidden_states, num_frames)
        for block in self.transformer_blocks:
            tokens = block(tokens) if call is None else call(block, tokens)
        tokens = self.proj_out(tokens).unflatten(0, (-1, height, width))  # [B, h, w, F, C]
        tokens = tokens.permute(0, 3, 4, 1, 2)  # [B, F, C, h, w]
        return (hidden_states.unflatten(0, (-1, num_frames)) + tokens).flatten(0, 1)

    def _enter(self, hidden_states: Tensor, num_frames: int) -> Tensor:
        """Return the tokens [B*h*w, F, C] of [B*F, C, h, w]."""
        tokens = self.norm(hidden_states).unflatten(0, (-1, num_frames))  # [B, F, C, h, w]
        return self.proj_in(tokens.permute(0, 3, 4, 1, 2).flatten(0, 2))


class _DenoisingForward:
    """The forward that both denoising UNets share: a walk over diffusers' blocks, frames folded into the
    batch."""

    def forward(
        self,
        noisy_latents: Tensor,
        timesteps: Tensor,
        image_tokens: Tensor,
        features: GuidanceFeatures,
        cross_attention_kwargs: dict | None = None,
    ) -> Tensor:
        """Return the prediction [B, F, 4, h, w] for noisy_latents [B, F, 4, h, w], timesteps [B],
        image_tokens [B, L, D]; cross_attention_kwargs: what `ReferenceReadAttention` takes of the reference.
        """
        num_clips, num_frames = noisy_latents.shape[:2]
        self.check_num_frames(num_frames)
        time = self.time_embedding(self.time_proj(timesteps).to(self.dtype))  # [B, T]
        time = time[:, None].expand(num_clips, num_frames, -1)
        if features.vector is not None:
            time = time + features.vector
        hidden = self.conv_in(noisy_latents.flatten(0, 1))  # [B*F, C0, h, w]
        if features.spatial is not None:
            hidden = hidden + features.spatial.flatten(0, 1)

        common = {"temb": time.flatten(0, 1)}
        if isinstance(self, UNetMotionModel):
            common["num_frames"] = num_frames
        of_attention = {
            "encoder_hidden_states": image_tokens.repeat_interleave(num_frames, dim=0),
            "cross_attention_kwargs": cross_attention_kwargs,
        }
        hidden = self._walk_blocks(hidden, common, common | of_attention)
        prediction = self.conv_out(self.conv_act(self.conv_norm_out(hidden)))
        return prediction.unflatten(0, (num_clips, num_frames))

    def _walk_blocks(self, hidden: Tensor, common: dict, with_attention: dict) -> Tensor:
        """Return [B*F, C0, h, w] of the same, through down, middle and up blocks with skip connections.

        What they are called with: a block without attention takes the `common` arguments only.
        """

        def arguments_of(block: nn.Module) -> dict:
            return with_attention if getattr(block, "has_cross_attention", False) else common

        skips = [hidden]
        for block in self.down_blocks:
            hidden, outputs = block(hidden, **arguments_of(block))
            skips.extend(outputs)
        hidden = self.mid_block(hidden, **arguments_of(self.mid_block))
        for block in self.up_blocks:
            count = len(block.resnets)
            block_skips, skips = tuple(skips[-count:]), skips[:-count]
            # The next skip's size, so that latents need not be multiples of the UNet's stride.
            upsample_size = skips[-1].shape[-2:] if skips else None
            hidden = block(hidden, block_skips, upsample_size=upsample_size, **arguments_of(block))
        return hidden

    def check_num_frames(self, num_frames: int) -> None:
        """Raise ModelError when the model cannot take clips of this length."""

    def set_attention_backend(self, backend: str) -> None:
        """Set our attention processors; `backend` is "sdpa" or "xformers"."""
        processors = {}
        for name in self.attn_processors:
            if ".motion_modules." in name:
                processors[name] = SelfAttention(backend)
            elif name.endswith("attn1.processor"):
                processors[name] = ReferenceReadAttention(name, backend)
            else:
                processors[name] = ImageTokenAttention(backend)
        self.set_attn_processor(processors)

    def set_default_attn_processor(self) -> None:
        """Set our processors with PyTorch's attention; diffusers' own would lose the reference."""
        self.set_attention_backend("sdpa")


class ImageDenoisingUNet(_DenoisingForward, UNet2DConditionModel):
    """CHAMP's denoising UNet without motion modules: frames are independent images (image stage)."""

    __module__ = "models"  # what diffusers writes as the library into model_index.json, and imports again

    @functools.wraps(UNet2DConditionModel.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        take_pieces(self)
        self.set_attention_backend("sdpa")

    @classmethod
    def from_unet2d(cls, unet: UNet2DConditionModel) -> "ImageDenoisingUNet":
        """Return a model with a copy of the base UNet's weights."""
        check_base_unet(unet)
        model = cls.from_config(unet.config)
        model.load_state_dict(unet.state_dict())
        return model


class MotionDenoisingUNet(_DenoisingForward, UNetMotionModel):
    """CHAMP's denoising UNet with motion modules."""

    __module__ = "models"  # see ImageDenoisingUNet

    # The wrapped signature is what diffusers reads to know the configuration's keys.
    @functools.wraps(UNetMotionModel.__init__)
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            block.motion_modules = nn.ModuleList(MotionModule(stock) for stock in block.motion_modules)
        take_pieces(self)
        self.set_attention_backend("sdpa")

    @classmethod
    def from_unet2d(cls, unet: UNet2DConditionModel, num_positions: int = 32) -> "MotionDenoisingUNet":
        """Return the base UNet with fresh motion modules, which leave its output as it is."""
        check_base_unet(unet)
        config = {name: unet.config[name] for name in cls._get_init_keys(cls) if name in unet.config}
        config |= {
            "down_block_types": [name.replace("2D", "Motion") for name in unet.config.down_block_types],
            "up_block_types": [name.replace("2D", "Motion") for name in unet.config.up_block_types],
            # diffusers' older UNets call the number of heads their size.
            "num_attention_heads": unet.config.num_attention_heads or unet.config.attention_head_dim,
            "motion_max_seq_length": num_positions,
        }
        model = cls(**config)
        model.load_state_dict(model.state_dict() | unet.state_dict())
        return model

    def check_num_frames(self, num_frames: int) -> None:
        limit = self.config.motion_max_seq_length
        if num_frames > limit:
            problem = f"a clip of {num_frames} frames: the motion modules know {limit} positions"
            fix = f"so take clips of at most {limit} frames (--sequence_length {limit}"
            raise ModelError(f"{problem}, {fix}; longer videos are sampled in windows)")

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable | None = None) -> None:
        super().enable_gradient_checkpointing(gradient_checkpointing_func)
        self._checkpoint_motion_modules(gradient_checkpointing_func or checkpoint_function("all"))

    def disable_gradient_checkpointing(self) -> None:
        super().disable_gradient_checkpointing()
        self._checkpoint_motion_modules(None)

    def _checkpoint_motion_modules(self, function: Callable | None) -> None:
        # diffusers checkpoints the middle block's motion module but none of the others, which hold most of
        # the activations: 21.0 GiB against 4.0 for 24 frames at 512 in bf16.
        is_whole = not takes_blocks(function)
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            for module in block.motion_modules:
                module.block_function = None if is_whole else function
                module.checkpoint_function = function if is_whole and block is not self.mid_block else None
