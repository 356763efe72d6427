"""The network: a transformer over the frames of a window that predicts the clean dance from a noisy one.

One token per frame, to which the music's row of the same frame is added; the reference is a token before
them. Timestep, mean music, mean pose and reference scale and shift every layer (adaLN-zero, DiT,
arXiv:2212.09748). The mean of a noisy window has little noise: it shows at once what lasts through a dance,
such as where the dancer stands, which attention alone finds late; until then all dances for a song are alike.
"""

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from .music import MusicFeatures
from .representation import NUM_ROOT_COLUMNS, PoseRepresentation

MOST_DEVIATIONS = 6.0  # a louder song than any in training stays within what was seen
LEAST_POSE_STD = 0.03  # torso lengths: below is a detector's noise
NO_LIMIT = 1e3  # torso lengths, until the bones have been measured


class MusicToPoseModel(ModelMixin, ConfigMixin):
    """B windows of F frames; P values per frame, D' columns of music, R values of a reference."""

    config_name = "config.json"

    @register_to_config
    def __init__(
        self,
        num_key_points: int,
        music_channels: int,
        music_groups: dict[str, list[int]] | None = None,
        beat_channel: int | None = None,
        frame_rate: float = 25.0,
        sequence_length: int = 100,
        hidden_size: int = 256,
        num_layers: int = 6,
        num_heads: int = 8,
    ) -> None:
        super().__init__()
        self.representation = PoseRepresentation(num_key_points, frame_rate)
        self.music_features = MusicFeatures(music_channels, music_groups, beat_channel, frame_rate)
        num_values, num_columns = self.representation.num_values, self.music_features.num_columns
        num_bones = self.representation.num_bones
        for name, size in (("pose", num_values), ("music", num_columns)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))
        self.register_buffer("bone_limits", torch.full((num_bones,), NO_LIMIT))  # torso lengths
        groups = self.music_features.groups
        in_group = torch.zeros(len(groups), num_columns)
        for row, columns in enumerate(groups.values()):
            in_group[row, columns] = 1
        self.register_buffer("in_group", in_group, persistent=False)  # [G, D']
        self.pose_in = nn.Linear(num_values, hidden_size)
        self.pose_mean_in = nn.Linear(num_values, hidden_size)
        self.music_conv = nn.Conv1d(num_columns + len(groups), hidden_size, 5, padding=2)
        self.music_in = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        self.music_mean_in = nn.Linear(num_columns + len(groups), hidden_size)
        self.reference_in = nn.Sequential(
            nn.Linear(self.representation.num_reference_values, hidden_size), nn.SiLU(),
            nn.Linear(hidden_size, hidden_size),
        )  # fmt: skip
        self.time_waves = Timesteps(hidden_size, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_in = TimestepEmbedding(hidden_size, hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(num_layers))
        self.last_modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.pose_out = nn.Linear(hidden_size, num_values)
        for layer in (self.last_modulation, self.pose_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        music: Tensor,
        reference: Tensor,
        music_mask: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the clean values, normalised, [B, F, P].

        noisy [B, F, P], normalised; timesteps int64 [B]; music [B, F, D'] as MusicFeatures returns it;
        reference [B, R] as `representation.encode_reference` returns it; music_mask {group: bool [B]},
        False = without this group; groups that are not named are heard.
        """
        music = self._hear(music, music_mask or {})  # [B, F, D' + G]
        reference_token = self.reference_in(self._normalize_reference(reference))  # [B, d]
        condition = self.time_in(self.time_waves(timesteps).to(noisy.dtype))  # [B, d]
        condition = condition + self.music_mean_in(music.mean(1)) + reference_token  # [B, d]
        # Scaled so that the noise keeps its deviation of 1, and the input layer its usual range.
        condition = condition + self.pose_mean_in(noisy.mean(1) * noisy.shape[1] ** 0.5)  # [B, d]
        condition = F.silu(condition)
        rows = self.music_conv(music.transpose(1, 2)).transpose(1, 2)  # [B, F, d]
        tokens = self.pose_in(noisy) + self.music_in(rows)  # [B, F, d]
        tokens = torch.cat([reference_token[:, None], tokens], dim=1)  # [B, 1 + F, d]
        turns = rotations(tokens.shape[1], self.blocks[0].head_size, tokens)  # [1 + F, d / heads]
        for block in self.blocks:
            tokens = block(tokens, condition, turns)  # [B, 1 + F, d]
        shift, scale = self.last_modulation(condition)[:, None].chunk(2, -1)  # [B, 1, d]
        return self.pose_out(modulated(tokens[:, 1:], shift, scale))  # [B, F, P]

    def _hear(self, music: Tensor, music_mask: dict[str, Tensor]) -> Tensor:
        """Return normalised music without the dropped groups, and which are heard, [B, F, D' + G]."""
        music = ((music - self.music_mean) / self.music_std).clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)
        everyone = torch.ones(len(music), dtype=torch.bool, device=music.device)
        heard = [music_mask.get(name, everyone) for name in self.music_features.groups]  # G times [B]
        heard = torch.stack(heard, dim=1).to(music.dtype)  # [B, G]
        columns = (heard @ self.in_group).clamp(max=1)  # [B, D']
        return torch.cat([music * columns[:, None], heard[:, None].expand(-1, music.shape[1], -1)], dim=-1)

    def _normalize_reference(self, reference: Tensor) -> Tensor:
        """Return [B, R] with offsets normalised as the dance's are; absent ones are 0, the mean."""
        num_bones = self.representation.num_bones
        offsets, is_there = reference[:, : 2 * num_bones], reference[:, 2 * num_bones :]  # [B, 2 n], [B, n]
        offsets = (offsets - self.pose_mean[NUM_ROOT_COLUMNS:]) / self.pose_std[NUM_ROOT_COLUMNS:]
        return torch.cat([offsets * is_there.repeat_interleave(2, -1), is_there], dim=-1)

    def normalize(self, values: Tensor) -> Tensor:
        return (values - self.pose_mean) / self.pose_std

    def denormalize(self, values: Tensor) -> Tensor:
        return values * self.pose_std + self.pose_mean

    def set_statistics(
        self,
        pose: tuple[Tensor, Tensor],
        music: tuple[Tensor, Tensor],
        bone_limits: Tensor | None = None,
    ) -> None:
        """Set mean and standard deviation of pose [P] and music [D'], and the longest bones [n].

        A column of music that never changes is left as it is.
        """
        self.pose_mean.copy_(pose[0])
        self.pose_std.copy_(pose[1].clamp(min=LEAST_POSE_STD))
        self.music_mean.copy_(music[0])
        self.music_std.copy_(torch.where(music[1] > 1e-4, music[1], 1))
        if bone_limits is not None:
            self.bone_limits.copy_(bone_limits)


class Block(nn.Module):
    """Attention between frames, then a layer on each, both scaled, shifted and gated by the condition."""

    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_size = num_heads, hidden_size // num_heads
        self.modulation = nn.Linear(hidden_size, 6 * hidden_size)
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.attention_out = nn.Linear(hidden_size, hidden_size)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size)
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, condition: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Return tokens [B, L, d]; condition [B, d]; turns: of `rotations`."""
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(condition)[:, None].chunk(6, -1)
        tokens = tokens + gate * self.attend(modulated(tokens, shift, scale), turns)  # [B, L, d]
        return tokens + gate_2 * self.feed_forward(modulated(tokens, shift_2, scale_2))  # [B, L, d]

    def attend(self, tokens: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        heads = self.query_key_value(tokens).unflatten(-1, (3, self.num_heads, self.head_size))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # [B, heads, L, d / heads] each
        attended = F.scaled_dot_product_attention(rotate(query, turns), rotate(key, turns), value)
        return self.attention_out(attended.transpose(1, 2).flatten(2))  # [B, L, d]


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return tokens [B, L, d] normalised without weights, then scaled and shifted by [B, 1, d]."""
    return F.layer_norm(tokens, tokens.shape[-1:]) * (1 + scale) + shift


def rotations(num_tokens: int, head_size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosine and sine [L, d / heads / 2] of rotary positions (RoPE, arXiv:2104.09864)."""
    half = torch.arange(head_size // 2, device=like.device)
    speeds = 10_000.0 ** (-2 * half / head_size)  # [d / heads / 2]
    angles = torch.arange(num_tokens, device=like.device)[:, None] * speeds  # [L, d / heads / 2]
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(heads: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    """Return heads [B, heads, L, d / heads] turned by their positions."""
    cosine, sine = turns
    first, second = heads.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
