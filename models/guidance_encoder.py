"""Guidance encoders: one module per guidance type, from the batch's condition to features of the denoising
UNet.

*Spatial* encoders return [B, F, E, h, w], added to the output of the UNet's `conv_in`; *vector* encoders
return [B, F, E], added to the time embedding frame by frame. The image encoder is CHAMP's
(arXiv:2403.14781). A type of your own is a module with `__init__(guidance_embedding_channels,
guidance_input_channels)` and `forward(condition)`, registered with `@register_guidance_encoder("type")`.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from models.champ.reference_attention import SelfAttention
from models.recomputation import checkpoint_function
from system.errors import ModelError

KINDS = ("spatial", "vector")

# Standard deviation of a key point's Gaussian, as a fraction of the frame's shorter side: 7.7 pixels at 512.
POSE_SIGMA = 0.015

# What keeps the variance of normal values through a SiLU: 1 / sqrt(E[silu(x)^2]).
SILU_GAIN = 1.68

_REGISTRY: dict[str, type[nn.Module]] = {}


def register_guidance_encoder(guidance_type: str, kind: str = "spatial"):
    """Return a class decorator: encoders of `guidance_type` are of this class from now on."""
    if kind not in KINDS:
        raise ModelError(f"guidance encoder kind {kind!r} is unknown: choose one of {', '.join(KINDS)}")

    def register(encoder_class: type[nn.Module]) -> type[nn.Module]:
        encoder_class.guidance_kind = kind
        _REGISTRY[guidance_type] = encoder_class
        return encoder_class

    return register


def zeroed(layer: nn.Module) -> nn.Module:
    """Return the layer with weight and bias zero, so that it contributes nothing until it has learned."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _keep_variance(convolution: nn.Conv2d) -> None:
    """Give a convolution before a SiLU weights that keep the variance, and a bias of zero.

    PyTorch's own shrink the signal in every layer while the biases stay: behind seven convolutions two poses
    differ by a thousandth of what the group norm then scales to 1, and training needs long to find them.
    """
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="linear")
    with torch.no_grad():
        convolution.weight *= SILU_GAIN
    nn.init.zeros_(convolution.bias)


def create_guidance_encoders(
    guidance_types: list[str],
    guidance_input_channels: list[int],
    guidance_embedding_channels: int,
    *,
    spatial_music: bool = False,
    block_out_channels: tuple[int, ...] = (16, 32, 96, 256),
    num_attention_heads: int = 8,
) -> dict[str, nn.Module]:
    """Return {type: encoder}. A type that is not registered is image maps (depth, normal, dwpose, ...).

    spatial_music: music features are maps [D, H, W] per frame, not vectors [D].
    """
    if len(guidance_types) != len(guidance_input_channels):
        types = f"{len(guidance_types)} guidance types ({', '.join(guidance_types)})"
        channels = f"{len(guidance_input_channels)} guidance_input_channels"
        raise ModelError(f"{types} but {channels}: one per type, in the same order")
    if len(set(guidance_types)) != len(guidance_types):
        raise ModelError(f"guidance types repeat: {', '.join(guidance_types)}")
    encoders = {}
    of_images = {"block_out_channels": block_out_channels, "num_attention_heads": num_attention_heads}
    for guidance_type, input_channels in zip(guidance_types, guidance_input_channels, strict=True):
        encoder_class = _REGISTRY.get(guidance_type, ImageGuidanceEncoder)
        if encoder_class is MusicGuidanceEncoder and spatial_music:
            encoder_class = MusicMapGuidanceEncoder
        options = of_images if issubclass(encoder_class, ImageGuidanceEncoder) else {}
        encoder = encoder_class(guidance_embedding_channels, input_channels, **options)
        encoder.guidance_embedding_channels = guidance_embedding_channels
        encoder.guidance_input_channels = input_channels
        encoders[guidance_type] = encoder
    return encoders


def _check_shape(condition: Tensor, ndim: int, sizes: tuple[int, ...], what: str, form: str) -> None:
    """Raise ModelError unless the condition has `ndim` axes, the third and those after it of these sizes."""
    if condition.ndim != ndim or condition.shape[2 : 2 + len(sizes)] != sizes:
        raise ModelError(f"{what} of shape {list(condition.shape)}: expected {form}")


class ImageGuidanceEncoder(nn.Module):
    """CHAMP's encoder of image-like guidance: convolutions with a stride of 2 per level, then one
    self-attention.

    The original also builds an attention per convolution and never runs them; their weights in official
    files are kept aside in `unused_weights`, so that the files can be written back.
    """

    guidance_kind = "spatial"
    first_layer = nn.Conv2d
    # Nothing is random, and no frame looks at another: features may be cached. Not inherited: a class of
    # your own says so by itself.
    encodes_frames_alone = True

    def __init__(
        self,
        guidance_embedding_channels: int,
        guidance_input_channels: int,
        block_out_channels: tuple[int, ...] = (16, 32, 96, 256),
        num_attention_heads: int = 8,
    ):
        super().__init__()
        widths, heads = tuple(block_out_channels), num_attention_heads
        self.guidance_embedding_channels = guidance_embedding_channels
        self.guidance_input_channels = guidance_input_channels
        self.block_out_channels = widths
        self.num_attention_heads = heads
        self.stride = 2 ** (len(widths) - 1)
        if len(widths) < 2 or widths[-1] % 32 != 0 or widths[-1] % heads != 0:
            divisors = f"32 (group norm) and by {heads} (attention heads)"
            fix = f"give at least two widths, the last divisible by {divisors}"
            raise ModelError(f"guidance_block_out_channels {list(widths)}: {fix}")
        last = widths[-1]
        self.conv_in = self.first_layer(guidance_input_channels, widths[0], kernel_size=3, padding=1)
        self.blocks = nn.ModuleList()
        for width, next_width in pairwise(widths):
            self.blocks.append(nn.Conv2d(width, width, kernel_size=3, padding=1))
            self.blocks.append(nn.Conv2d(width, next_width, kernel_size=3, padding=1, stride=2))
        for convolution in (self.conv_in, *self.blocks):
            _keep_variance(convolution)
        self.attention = Transformer2DModel(
            num_attention_heads=heads, attention_head_dim=last // heads, in_channels=last, norm_num_groups=32
        )
        for block in self.attention.transformer_blocks:
            block.attn1.set_processor(SelfAttention())
        self.conv_out = zeroed(nn.Conv2d(last, guidance_embedding_channels, kernel_size=3, padding=1))
        self.gradient_checkpointing = False  # diffusers sets it, and the function of models/recomputation
        self._gradient_checkpointing_func = checkpoint_function("all")
        self.unused_weights: dict[str, Tensor] = {}

    def forward(self, condition: Tensor) -> Tensor:
        """Return features [B, F, E, h, w] of images [B, F, C, stride*h, stride*w]."""
        channels = self.guidance_input_channels
        form = f"[B, F, {channels}, H, W] (third: the type's guidance_input_channels)"
        _check_shape(condition, 5, (channels,), "guidance", form)
        return self._encode(self.conv_in, condition)

    def _encode(self, enter, condition: Tensor) -> Tensor:
        """Return features [B, F, E, h, w]; `enter` maps the frames, as a batch, to the first width."""
        frames = condition.flatten(0, 1)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            hidden = self._gradient_checkpointing_func(self._convolve, enter, frames)
        else:
            hidden = self._convolve(enter, frames)
        hidden = self.attention(hidden, return_dict=False)[0]
        return self.conv_out(hidden).unflatten(0, condition.shape[:2])

    def _convolve(self, enter, frames: Tensor) -> Tensor:
        hidden = F.silu(enter(frames))  # [B*F, 16, H, W]
        for block in self.blocks:
            hidden = F.silu(block(hidden))
        # PyTorch's group norm, which follows, loses a digit on channels-last tensors.
        return hidden.contiguous()  # [B*F, 256, h, w]

    @property
    def output_layer(self) -> nn.Module:
        return self.conv_out


class HeatMapConvolution(nn.Conv2d):
    """A convolution (3x3, padding 1) of maps [N, K, H, W], or of the heat maps of points [N, K, 3].

    A module of its own, because with offloading a layer's weights are there while it is called.
    """

    def forward(self, maps: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """Return [N, C, H, W]; image_size (H, W) where points are given."""
        return super().forward(maps) if image_size is None else heat_map_convolution(self, maps, image_size)


@register_guidance_encoder("pose")
class PoseGuidanceEncoder(ImageGuidanceEncoder):
    """The image encoder over one Gaussian heat map per key point; the maps themselves are never made."""

    takes_image_size = True
    encodes_frames_alone = True
    first_layer = HeatMapConvolution

    def forward(self, condition: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """Return features [B, F, E, h, w] of key points [B, F, K, 3] (x, y in 0..1 of the frame, confidence;
        0 = absent) with image_size (H, W) in pixels, or of heat maps [B, F, K, H, W]."""
        if condition.ndim == 5:
            return super().forward(condition)
        channels = self.guidance_input_channels
        form = f"key points [B, F, {channels}, 3] (pose's guidance_input_channels)"
        _check_shape(condition, 4, (channels, 3), "pose guidance", form)
        if image_size is None:
            raise ModelError("pose key points need image_size=(H, W), the frame's size in pixels")
        return self._encode(lambda points: self.conv_in(points, image_size), condition)


def gaussian_profiles(points: Tensor, image_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return rows [N, K, H] and columns [N, K, W] of key points, whose outer products are the heat maps.

    points [N, K, 3] as in `PoseGuidanceEncoder.forward`. The peak of a map is the point's confidence.
    """
    points = points.float()
    confidence = points[..., 2].clamp(0, 1)
    # Coordinates of absent points may be anything, NaN too, which would survive a multiplication with 0.
    x, y = torch.where(confidence[..., None] > 0, points[..., :2], 0.0).unbind(-1)
    height, width = image_size
    sigma = POSE_SIGMA * min(height, width)

    def gaussian(position: Tensor, size: int) -> Tensor:
        centres = torch.arange(size, device=points.device, dtype=torch.float32) + 0.5
        return torch.exp(-0.5 * ((centres - position[..., None] * size) / sigma).square())

    return confidence[..., None] * gaussian(y, height), gaussian(x, width)


def heat_map_convolution(conv: nn.Conv2d, points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Return [N, C, H, W]: `conv` (3x3, padding 1) over the heat maps of points [N, K, 3], never made.

    A map is rows x columns, so the horizontal taps act on the columns and the rest is one matrix product over
    (point, vertical tap). 134 maps of 24 frames at 512 would take 3.4 GB. The result is channels-last.
    """
    height, width = image_size
    num_images, num_points = points.shape[:2]
    profiles = gaussian_profiles(points, image_size)
    rows, columns = (F.pad(profile, (1, 1)).to(conv.weight.dtype) for profile in profiles)
    rows = rows.unfold(-1, height, 1).reshape(num_images, num_points * 3, height)  # (point, vertical tap)
    columns = columns.unfold(-1, width, 1).transpose(2, 3)  # [N, K, W, 3 horizontal taps]
    weight = conv.weight.permute(1, 2, 3, 0)  # [K, 3 vertical taps, 3 horizontal taps, C]
    wide = (columns[:, :, None] @ weight).view(num_images, num_points * 3, -1)  # [N, K * 3, W * C]
    output = torch.bmm(rows.transpose(1, 2), wide).view(num_images, height, width, -1).permute(0, 3, 1, 2)
    return output + conv.bias[:, None, None].to(output.dtype)


class _FeatureStatistics:
    """Mean and standard deviation of the features over the training set, saved with the weights."""

    def _register_statistics(self, num_features: int) -> None:
        self.register_buffer("feature_mean", torch.zeros(num_features))
        self.register_buffer("feature_std", torch.ones(num_features))

    def set_feature_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set mean and std [D]. A feature that is constant in training is only shifted, not scaled."""
        mean, std = (torch.as_tensor(part, dtype=torch.float32) for part in (mean, std))
        own = self.feature_mean
        if mean.shape != own.shape or std.shape != own.shape:
            raise ModelError(f"feature statistics of {mean.numel()} features for an encoder of {own.numel()}")
        is_constant = std <= 1e-6 * mean.abs().clamp(min=1.0)
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(is_constant, 1.0, std))


@register_guidance_encoder("music", kind="vector")
class MusicGuidanceEncoder(_FeatureStatistics, nn.Module):
    """Music features per frame with temporal context: convolutions over the clip's frames.

    Two residual convolutions of kernel 5 see four frames to either side; the clip's edge is repeated, so any
    number of frames works, one too.
    """

    def __init__(
        self, guidance_embedding_channels: int, guidance_input_channels: int, hidden_channels: int = 256
    ):
        super().__init__()
        self.guidance_embedding_channels = guidance_embedding_channels
        self.guidance_input_channels = guidance_input_channels
        self._register_statistics(guidance_input_channels)
        self.linear_in = nn.Linear(guidance_input_channels, hidden_channels)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_channels) for _ in range(2))
        self.convs = nn.ModuleList(
            nn.Conv1d(hidden_channels, hidden_channels, kernel_size=5, padding=2, padding_mode="replicate")
            for _ in range(2)
        )
        self.norm_out = nn.LayerNorm(hidden_channels)
        self.linear_out = zeroed(nn.Linear(hidden_channels, guidance_embedding_channels))

    def forward(self, condition: Tensor) -> Tensor:
        """Return features [B, F, E] of raw values [B, F, D]."""
        channels = self.guidance_input_channels
        hint = "(the last is music's guidance_input_channels; maps [D, H, W] need spatial_music=True)"
        _check_shape(condition, 3, (channels,), "music guidance", f"[B, F, {channels}] {hint}")
        hidden = self.linear_in((condition - self.feature_mean) / self.feature_std)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            context = conv(F.silu(norm(hidden)).transpose(1, 2)).transpose(1, 2)  # over frames
            hidden = hidden + context
        return self.linear_out(F.silu(self.norm_out(hidden)))

    @property
    def output_layer(self) -> nn.Module:
        return self.linear_out


class MusicMapGuidanceEncoder(_FeatureStatistics, ImageGuidanceEncoder):
    """Music features that are maps [D, H, W] per frame (a spectrogram window, say): the image encoder."""

    takes_image_size = True
    encodes_frames_alone = True

    def __init__(self, guidance_embedding_channels: int, guidance_input_channels: int, **options):
        super().__init__(guidance_embedding_channels, guidance_input_channels, **options)
        self._register_statistics(guidance_input_channels)

    def forward(self, condition: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """Return features [B, F, E, h, w] of [B, F, D, H, W] of any size, resized after conv_in."""
        channels = self.guidance_input_channels
        _check_shape(condition, 5, (channels,), "music guidance", f"maps [B, F, {channels}, H, W]")

        def enter(frames: Tensor) -> Tensor:
            mean, std = self.feature_mean[:, None, None], self.feature_std[:, None, None]
            hidden = self.conv_in((frames - mean) / std)
            if image_size is None or hidden.shape[-2:] == tuple(image_size):
                return hidden
            return F.interpolate(hidden, size=tuple(image_size), mode="bilinear")

        return self._encode(enter, condition)
