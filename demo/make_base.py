"""Make `assets/tiny_base`: a small model in Stable Diffusion's folder layout, trained on drawn dancers.

It plays SD 1.5's part in the demo and the tests: `vae/ unet/ image_encoder/ scheduler/`, safetensors in half
precision. Run once, by hand, for some hours on two cores; the result is committed. Figures of each stage:
benchmarks/RESULTS.md, "The demo's base".

    python -m demo.make_base frames  --work_dir /somewhere/with/3/GB     drawn dancers, none of the demo's
    python -m demo.make_base vae     --work_dir ... --num_steps 5000     an AutoencoderTiny, factor 8
    python -m demo.make_base decoder --work_dir ... --num_steps 5000     its decoder, further
    python -m demo.make_base unet    --work_dir ... --num_steps 3200     UNet and image encoder

"unet" goes on from what is there; move `tiny_base` away to start afresh.

The UNet learns to draw a dancer from an image token and from reference attention to the dancer's reference
image, one set of weights reading and being read. Part of the time it is also told roughly where the joints
are and what the light does, through two small layers that are thrown away afterwards, which shortens its
training. The base has no input for pose, music or motion; those are the demo's to learn.
"""

import system.waiting  # before torch is loaded

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from caching.source_digests import weights_digest
from datasets.transforms import clip_image_transform
from models import ChampModel, FrozenEncoders, create_guidance_encoders, register_guidance_encoder
from system.whole_files import whole_file
from training.objective import DiffusionObjective, make_noise_scheduler

from .dancer import Stage, choreograph, draw_frame, draw_lots, key_points, stage_light, standing
from .music import compose_song

BASE_DIR = Path(__file__).resolve().parents[1] / "assets" / "tiny_base"
RESOLUTION = 128
NUM_DANCERS = 6000
FRAMES_PER_DANCER = 8  # and the reference image before them
FIRST_SEED = 1_000_000  # the demo's own dancers have seeds below this
LATENT_NOISE = 0.08  # the decoder learns to forgive the small errors of a denoiser
HINT_DROPOUT = 0.3


def draw_dancer(index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a dancer's frames uint8 [1 + FRAMES_PER_DANCER, H, W, 3], a reference image and then dance;
    key points float32 [FRAMES_PER_DANCER, 134, 3]; and brightness and hue of the light [..., 3]."""
    generator = np.random.default_rng(FIRST_SEED + index)
    dancer, song = draw_lots(generator), compose_song(generator, 16)
    seconds = np.sort(generator.uniform(0, 16, FRAMES_PER_DANCER))
    postures, light = choreograph(dancer, song, seconds, generator), stage_light(song, seconds)
    scenes = [(standing(dancer), Stage()), *zip(postures, light, strict=True)]
    frames = np.stack([draw_frame(dancer, posture, stage, RESOLUTION) for posture, stage in scenes])
    angles = [2 * np.pi * stage.floor_hue for stage in light]
    hues = [(4 * (stage.brightness - 0.65), np.cos(angle), np.sin(angle))
            for stage, angle in zip(light, angles, strict=True)]  # fmt: skip
    poses = np.stack([key_points(dancer, posture) for posture in postures])
    return frames, poses.astype(np.float32), np.array(hues, np.float32)


def draw_frames(work_dir: Path) -> None:
    """Write frames.npy, poses.npy and lights.npy, one row per dancer, as `draw_dancer` returns them."""
    work_dir.mkdir(parents=True, exist_ok=True)
    shape = (NUM_DANCERS, 1 + FRAMES_PER_DANCER, RESOLUTION, RESOLUTION, 3)
    frames = np.lib.format.open_memmap(work_dir / "frames.npy", mode="w+", dtype=np.uint8, shape=shape)
    poses = np.zeros((NUM_DANCERS, FRAMES_PER_DANCER, 134, 3), np.float32)
    lights = np.zeros((NUM_DANCERS, FRAMES_PER_DANCER, 3), np.float32)
    with ProcessPoolExecutor() as pool:
        for index, drawn in enumerate(pool.map(draw_dancer, range(NUM_DANCERS), chunksize=16)):
            frames[index], poses[index], lights[index] = drawn
    frames.flush()
    np.save(work_dir / "poses.npy", poses)
    np.save(work_dir / "lights.npy", lights)


def to_pixels(frames: np.ndarray) -> Tensor:
    """Return uint8 [..., H, W, 3] as float [..., 3, H, W] in [-1, 1]."""
    return torch.from_numpy(frames).movedim(-1, -3).float() / 127.5 - 1


def cosine(step: int, num_steps: int, warmup: int = 100) -> float:
    """Return the learning-rate factor: a short warm-up, then half a cosine down to 2 %."""
    return min(1, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / num_steps)))


def optimize(
    optimizers: Sequence[Optimizer], num_steps: int, loss_of: Callable[[int], Tensor]
) -> Iterator[tuple[int, float, bool]]:
    """Train on loss_of(step), steps from 0; yield (steps done, loss, whether to report) after each one."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    peaks = [group["lr"] for group in groups]
    for step in range(num_steps):
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * cosine(step, num_steps)
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        yield step + 1, loss.item(), (step + 1) % 200 == 0 or step == num_steps - 1


class Muon(Optimizer):
    """Momentum whose steps are orthogonal matrices (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon).

    A convolution counts as a matrix of [channels out, all else]; torch.optim.Muon takes no convolutions.
    After 200 steps of the base the held-out loss was 0.294, with AdamW 0.362.
    """

    def __init__(self, parameters: list[Tensor], lr: float):
        super().__init__(parameters, {"lr": lr, "momentum": 0.95, "weight_decay": 0.05})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad.flatten(1)
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(gradient))
                mean.mul_(momentum).add_(gradient)
                update = orthogonal(gradient + momentum * mean)
                update *= max(1, len(update) / update.shape[1]) ** 0.5
                parameter.mul_(1 - lr * group["weight_decay"])
                parameter.add_(update.view_as(parameter), alpha=-lr)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return roughly the orthogonal matrix nearest to `matrix`: five steps of a Newton-Schulz iteration."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
    return x.T if is_tall else x


def make_vae(scaling_factor: float = 1.0) -> AutoencoderTiny:
    """Return an autoencoder of factor 8, 4 latent channels; the decoder works at half size, then doubles."""
    return AutoencoderTiny(
        encoder_block_out_channels=(32,) * 4, num_encoder_blocks=(0, 1, 2, 3),
        decoder_block_out_channels=(32,) * 4, num_decoder_blocks=(3, 3, 2, 0), scaling_factor=scaling_factor,
    )  # fmt: skip


def train_vae(work_dir: Path, num_steps: int, batch_size: int, learning_rate: float, part: str) -> None:
    """Train the autoencoder on single frames: part "vae" all of it, "decoder" what may change later."""
    frames = np.load(work_dir / "frames.npy", mmap_mode="r").reshape(-1, RESOLUTION, RESOLUTION, 3)
    torch.manual_seed(0)
    vae = make_vae()
    if part == "decoder":
        vae.load_state_dict(AutoencoderTiny.from_pretrained(BASE_DIR / "vae").float().state_dict())
        vae.encoder.requires_grad_(False)
    vae.to(memory_format=torch.channels_last)
    trained = [parameter for parameter in vae.parameters() if parameter.requires_grad]
    optimizer = AdamW(trained, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0)
    held_out = to_pixels(np.array(frames[-256::4]))
    generator, started = np.random.default_rng(0), time.time()

    def loss_of(step: int) -> Tensor:
        rows = np.sort(generator.choice(len(frames) - 256, batch_size, replace=False))
        pixels = to_pixels(np.array(frames[rows])).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(pixels).latents
            decoded = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        error = decoded.float() - pixels
        return error.abs().mean() + 2 * error.square().mean() + 1e-3 * latents.float().square().mean()

    for step, _, is_report in optimize([optimizer], num_steps, loss_of):
        if is_report:
            psnr = save_vae(vae, held_out)
            print(f"vae step {step}: held-out PSNR {psnr:.2f} dB, {time.time() - started:.0f} s", flush=True)


@torch.no_grad()
def save_vae(vae: AutoencoderTiny, pixels: Tensor) -> float:
    """Save in half precision, the latents scaled to unit deviation; return the PSNR of the pixels in dB."""
    latents = vae.encode(pixels).latents
    half = make_vae(scaling_factor=round(1 / latents.std().item(), 3))
    half.load_state_dict(vae.state_dict())
    half.half().save_pretrained(BASE_DIR / "vae")
    return 10 * math.log10(4 / F.mse_loss(vae.decode(latents).sample.clamp(-1, 1), pixels))


def make_unet() -> UNet2DConditionModel:
    """Return SD 1.5's UNet with three levels and attention heads of 32 channels.

    Groups of at least 8 channels are normalised together: one channel per group would forget its mean, which
    is what an even background is made of. The channels are multiples of the motion modules' 32 norm groups.
    """
    return UNet2DConditionModel(
        sample_size=RESOLUTION // 8, block_out_channels=(64, 96, 128), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64, attention_head_dim=(2, 3, 4),  # which diffusers takes for numbers of heads
    )  # fmt: skip


def make_image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, patch_size=32,
        image_size=224, projection_dim=64,
    ))  # fmt: skip


@register_guidance_encoder("pose_hint")
class PoseHint(torch.nn.Module):
    """Rough joint positions at latent resolution; only this script's training sees it."""

    def __init__(self, guidance_embedding_channels: int, guidance_input_channels: int):
        super().__init__()
        self.conv = torch.nn.Conv2d(guidance_input_channels, guidance_embedding_channels, 3, padding=1)
        torch.nn.init.zeros_(self.conv.weight)

    def forward(self, condition: Tensor) -> Tensor:
        """Return [B, F, E, h, w] of [B, F, K, 3]."""
        size, points = RESOLUTION // 8, condition.flatten(0, 1)
        centres = (torch.arange(size) + 0.5) / size
        rows, columns = (
            torch.exp(-0.5 * ((centres - points[..., axis, None]) * size / 0.7).square()) for axis in (1, 0)
        )
        maps = (points[..., 2, None] * rows)[..., None] * columns[..., None, :]  # [B*F, K, h, w]
        return self.conv(maps).unflatten(0, condition.shape[:2])


@register_guidance_encoder("light_hint", kind="vector")
class LightHint(torch.nn.Linear):
    """Brightness and hue of each frame, [B, F, 3] -> [B, F, E]; only this script's training sees it."""

    def __init__(self, guidance_embedding_channels: int, guidance_input_channels: int):
        super().__init__(guidance_input_channels, guidance_embedding_channels)


def share_weights(model: ChampModel) -> None:
    """Make the reference UNet's parameters the denoising UNet's own: one UNet learns both parts."""
    denoising = dict(model.unet.named_modules())
    for name, module in model.reference_unet.named_modules():
        for key in module._parameters:
            module._parameters[key] = denoising[name]._parameters[key]
    model.unet.requires_grad_(True)


def encode_latents(work_dir: Path, frozen: FrozenEncoders) -> np.ndarray:
    """Return latents float16 [dancers, 1 + FRAMES_PER_DANCER, 4, h, w], encoded once by this VAE."""
    path = work_dir / f"latents-{weights_digest(frozen.vae)}.npy"
    if not path.exists():
        frames = np.load(work_dir / "frames.npy", mmap_mode="r")
        shape = (*frames.shape[:2], 4, RESOLUTION // 8, RESOLUTION // 8)
        with whole_file(path) as aside:
            latents = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float16, shape=shape)
            for first in range(0, len(frames), 16):
                pixels = to_pixels(np.array(frames[first : first + 16]))
                with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
                    latents[first : first + 16] = frozen.encode_frames(pixels).half().numpy()
            latents.flush()
    return np.load(path, mmap_mode="r")


def train_unet(work_dir: Path, num_steps: int, batch_size: int, learning_rate: float) -> None:
    """Train UNet and image encoder on three frames each of batch_size dancers per step."""
    torch.manual_seed(0)
    if not (BASE_DIR / "unet").exists():
        make_unet().save_pretrained(BASE_DIR / "unet")
        make_image_encoder().save_pretrained(BASE_DIR / "image_encoder")
        make_noise_scheduler().save_pretrained(BASE_DIR / "scheduler")
    width = make_unet().config.block_out_channels[0]
    encoders = create_guidance_encoders(["pose_hint", "light_hint"], [134, 3], width)
    model = ChampModel.from_pretrained_sd(BASE_DIR, encoders, motion_modules=False)
    share_weights(model)
    frozen = FrozenEncoders.from_pretrained(BASE_DIR)
    image_encoder = frozen.image_encoder.train().requires_grad_(True)
    drawn = DrawnDancers(work_dir, frozen)
    trained = (model.unet, image_encoder, model.guidance_encoders)
    parameters = [parameter for module in trained for parameter in module.parameters()]
    average = [parameter.detach().clone() for parameter in parameters]
    objective = DiffusionObjective(
        make_noise_scheduler(), guidance_dropout=dict.fromkeys(drawn.hints, HINT_DROPOUT)
    )
    generator, started, mean_loss = np.random.default_rng(1), time.time(), 0.0

    def loss_of(step: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            latents, conditions = drawn.batch(generator, batch_size)
            draw = objective.draw(latents, [(step, place) for place in range(batch_size)])
            return objective(model, latents, conditions, draw)

    optimizers = make_optimizers(model, parameters, learning_rate)
    for step, loss, is_report in optimize(optimizers, num_steps, loss_of):
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 / min(step, 400))
        mean_loss += (loss - mean_loss) / min(step, 200)
        if is_report:
            print(f"unet step {step}: loss {mean_loss:.4f}, {time.time() - started:.0f} s", flush=True)
            save_unet(parameters, average, model, image_encoder)


def make_optimizers(model: ChampModel, parameters: list[Tensor], learning_rate: float) -> list[Optimizer]:
    """Return Muon for the UNet's matrices and convolutions within, AdamW for all else."""
    inner = [
        parameter for name, parameter in model.unet.named_parameters()
        if parameter.ndim >= 2 and not name.startswith(("conv_in.", "conv_out."))
    ]  # fmt: skip
    taken = {id(parameter) for parameter in inner}
    rest = [parameter for parameter in parameters if id(parameter) not in taken]
    adam = AdamW(rest, lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)
    return [adam, Muon(inner, lr=0.02)]


class DrawnDancers:
    """The drawn frames as latents, with their reference images and hints."""

    def __init__(self, work_dir: Path, frozen: FrozenEncoders):
        self.frames = np.load(work_dir / "frames.npy", mmap_mode="r")
        self.latents = encode_latents(work_dir, frozen)
        files = {"pose_hint": "poses.npy", "light_hint": "lights.npy"}
        self.hints = {name: np.load(work_dir / file_name) for name, file_name in files.items()}
        self.image_encoder = frozen.image_encoder

    def batch(self, generator: np.random.Generator, batch_size: int) -> tuple[Tensor, dict]:
        """Return latents [B, 3, 4, h, w] of random dancers' frames, and the model's conditions."""
        rows = np.sort(generator.choice(len(self.frames), batch_size, replace=False))
        picks = np.stack([1 + generator.permutation(FRAMES_PER_DANCER)[:3] for _ in rows])
        clip_images = torch.stack([clip_image_transform(np.array(self.frames[row, 0])) for row in rows])
        guidance = {
            name: torch.from_numpy(values[rows[:, None], picks - 1]) for name, values in self.hints.items()
        }
        conditions = {
            "reference_latents": torch.from_numpy(self.latents[rows, 0]).float(),
            "image_tokens": self.image_encoder(clip_images).image_embeds[:, None],
            "guidance": guidance,
        }
        return torch.from_numpy(self.latents[rows[:, None], picks]).float(), conditions


@torch.no_grad()
def save_unet(parameters: list, average: list, model: ChampModel, image_encoder: torch.nn.Module) -> None:
    """Save the running average of the weights in half precision."""
    trained = [parameter.detach().clone() for parameter in parameters]
    torch._foreach_copy_(parameters, average)
    unet, encoder = make_unet(), make_image_encoder()
    unet.load_state_dict(model.unet.state_dict())
    encoder.load_state_dict(image_encoder.state_dict())
    unet.half().save_pretrained(BASE_DIR / "unet")
    encoder.half().save_pretrained(BASE_DIR / "image_encoder")
    torch._foreach_copy_(parameters, trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=("frames", "vae", "unet", "decoder"))
    parser.add_argument("--work_dir", type=Path, required=True, help="folder for the drawn frames")
    parser.add_argument("--num_steps", type=int, default=9000)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1.5e-3)
    arguments = parser.parse_args()
    if arguments.part == "frames":
        draw_frames(arguments.work_dir)
        return
    settings = (arguments.work_dir, arguments.num_steps, arguments.batch_size, arguments.learning_rate)
    if arguments.part == "unet":
        train_unet(*settings)
    else:
        train_vae(*settings, arguments.part)


if __name__ == "__main__":
    main()
