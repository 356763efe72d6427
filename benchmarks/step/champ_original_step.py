"""One process of the training-step benchmark: steps of the original CHAMP, from the user's own checkout.

Started by train_step.py with the original's interpreter. Its networks run as they are, in the order of its
train_s1.py (image stage) and train_s2.py (motion stage); `joint` is the second with everything trained, which
the original does not have. Differences: random weights; the reference bank is kept in the run's precision,
not always in half; the reference is never dropped (the original drops it in a tenth of the steps); clips are
read once from a file, so that reading costs it nothing.
"""

import functools
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from champ_original_networks import make_frozen, make_networks
from clock import MemoryPeak, StepClock, measure_steps
from diffusers import DDIMScheduler
from omegaconf import OmegaConf
from safetensors.torch import load_file
from sizes import GUIDANCE_TYPES, SIZES, Size

PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class OriginalTrainer:
    """The original's networks, optimizer and step."""

    def __init__(self, spec: dict):
        sys.path.insert(0, spec["champ_repo"])
        self.stage, size, settings = spec["stage"], SIZES[spec["size"]], spec["settings"]
        self.weight_dtype = PRECISIONS[settings.get("mixed_precision", "no")]
        self.accelerator = Accelerator(
            cpu=spec["device"] == "cpu", mixed_precision=settings.get("mixed_precision", "no")
        )
        self.device = self.accelerator.device
        self.clock, self.memory = StepClock(self.device), MemoryPeak(self.device)
        torch.manual_seed(42)
        config = OmegaConf.load(Path(spec["champ_repo"]) / "configs" / "train" / "stage2.yaml")
        with self.device:
            self.vae, self.image_encoder = make_frozen(size, self.weight_dtype)
            model = self._make_model(size, OmegaConf.to_container(config.unet_additional_kwargs))
        if settings.get("gradient_checkpointing") == "all":
            model.reference_unet.enable_gradient_checkpointing()
            model.denoising_unet.enable_gradient_checkpointing()
        self.scheduler = DDIMScheduler(
            **OmegaConf.to_container(config.noise_scheduler_kwargs)
            | {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True,
               "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
        )  # fmt: skip
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(self.trained, lr=1e-5, weight_decay=1e-2)  # its configurations' values
        self.bare_model = model
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        batch = load_file(Path(spec["work_dir"]) / f"batch_{self.stage}.safetensors")
        self.batch = {name: tensor.to(self.device) for name, tensor in batch.items()}
        self._watch()

    def _make_model(self, size: Size, motion_settings: dict):
        """Return the original's ChampModel, frozen as its trainer of the stage freezes it."""
        from models.champ_model import ChampModel
        from models.mutual_self_attention import ReferenceAttentionControl

        reference_unet, denoising_unet, encoders = make_networks(
            size, None if self.stage == "image" else motion_settings
        )
        self.writer, self.reader = (
            ReferenceAttentionControl(
                unet, do_classifier_free_guidance=False, mode=mode, fusion_blocks="full"
            )
            for unet, mode in ((reference_unet, "write"), (denoising_unet, "read"))
        )
        self.reader.update = functools.partial(self.reader.update, dtype=self.weight_dtype)
        model = ChampModel(reference_unet, denoising_unet, self.writer, self.reader, encoders)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(self._is_trained(name))
        if self.stage == "motion":
            reference_unet.to(dtype=self.weight_dtype)
        return model

    def _is_trained(self, name: str) -> bool:
        if self.stage == "motion":
            return name.startswith("denoising_unet.") and "motion_modules" in name
        return self.stage == "joint" or not (name.startswith("reference_unet.") and "up_blocks.3" in name)

    def _watch(self) -> None:
        self.vae.encode = self.clock.watched(self.vae.encode, "vae")
        self.clock.watch(self.image_encoder, "image_encoder")
        for name in GUIDANCE_TYPES:
            self.clock.watch(getattr(self.bare_model, f"guidance_encoder_{name}"), "guidance_encoders")
        self.clock.watch(self.bare_model.reference_unet, "reference")
        self.clock.watch(self.bare_model.denoising_unet, "denoiser")

    @torch.no_grad()
    def _encode(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return latents [B, 4, F, h, w], reference latents [B, 4, h, w] and image tokens [B, 1, D]."""
        frames = self.batch["frames"].to(self.weight_dtype)  # [B, F, 3, H, W]
        latents = self.vae.encode(frames.flatten(0, 1)).latent_dist.sample() * 0.18215
        latents = latents.unflatten(0, frames.shape[:2]).transpose(1, 2)
        reference = self.batch["reference_image"].to(self.weight_dtype)
        reference_latents = self.vae.encode(reference).latent_dist.sample() * 0.18215
        tokens = self.image_encoder(self.batch["clip_image"].to(self.weight_dtype)).image_embeds
        return latents, reference_latents, tokens[:, None]

    def step(self) -> float:
        """Train one step and return its loss."""
        accelerator = self.accelerator
        with accelerator.accumulate(self.model):
            latents, reference_latents, tokens = self._encode()
            shape = (*latents.shape[:2], 1, 1, 1)
            noise = torch.randn_like(latents)
            noise += 0.05 * torch.randn(shape, device=self.device)
            timesteps = torch.randint(0, 1000, (len(latents),), device=self.device)
            prediction = self.model(
                self.scheduler.add_noise(latents, noise, timesteps), timesteps, reference_latents, tokens,
                self.batch["guidance"].transpose(1, 2), uncond_fwd=False,
            )  # fmt: skip
            target = self.scheduler.get_velocity(latents, noise, timesteps)
            errors = F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)
            loss = (errors * self._loss_weights(timesteps)).mean()
            value = accelerator.gather(loss.repeat(len(latents))).mean().item()
            with self.clock.part("backward"):
                accelerator.backward(loss)
            with self.clock.part("optimizer"):
                accelerator.clip_grad_norm_(self.trained, 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.reader.clear()
        self.writer.clear()
        return value

    def _loss_weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        alphas = self.scheduler.alphas_cumprod.to(self.device)[timesteps]
        ratio = alphas / (1 - alphas) + 1
        return ratio.clamp(max=5.0) / ratio


def measure(spec: dict) -> dict:
    """Run the steps of a spec; return its row of the results."""
    trainer = OriginalTrainer(spec)
    return measure_steps(trainer.step, trainer.clock, trainer.memory, spec)


if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(json.dumps(measure(spec)), encoding="utf-8")
