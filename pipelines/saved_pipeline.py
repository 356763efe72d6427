"""What our pipelines share as saved folders: whole weights, and class names that outlive moves of code.

And the pipeline whose model takes adapters, by the names that diffusers has for that.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from models.frozen import without_false_alarm
from models.lora import check_merged, has_lora, load_loras, merge_lora, set_lora_scales
from models.model_files import align_weights
from system.errors import ModelError


class SavedPipeline(DiffusionPipeline):
    """A pipeline of our own components, as training writes it to `output_dir/final`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **options) -> "SavedPipeline":
        """Return the saved pipeline; options are those of DiffusionPipeline.from_pretrained."""
        with without_false_alarm():
            pipeline = super().from_pretrained(pretrained_model_name_or_path, **options)
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                align_weights(component)
        return pipeline

    def register_modules(self, **modules) -> None:
        """Register our own classes as of the package `models`: saved pipelines outlive moves within it."""
        super().register_modules(**modules)
        for name in modules:
            library, class_name = self.config[name]
            if library is not None and library.startswith("models."):
                self.register_to_config(**{name: ("models", class_name)})


class AdaptedPipeline(SavedPipeline):
    """A pipeline whose `model`, a ChampModel, takes adapters."""

    def load_lora_weights(
        self, paths: str | Path | Sequence[str | Path], scales: float | Sequence[float] = 1.0
    ) -> list[str]:
        """Put one or several adapters on the model, all by one call; return names for `set_adapters`.

        paths: of each the final/ folder of a run with --lora_rank, or the file in it. scales: one for all, or
        one for each. Guidance encoders that one brings take the place of the model's, unless its scale is 0.
        Raises ModelError.
        """
        paths = [paths] if isinstance(paths, str | Path) else paths
        scales = len(paths) * [scales] if isinstance(scales, int | float) else scales
        if has_lora(self.model):
            raise ModelError("the pipeline has adapters already: give all of them as a list, in one call")
        return load_loras(self.model, paths, scales)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: float | Sequence[float] = 1.0
    ) -> None:
        """Scale adapters anew; those not named are off. Guidance encoders that one has brought stay."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        is_one = isinstance(adapter_weights, int | float)
        weights = len(names) * [adapter_weights] if is_one else adapter_weights
        set_lora_scales(self.model, dict(zip(names, weights, strict=True)))

    def fuse_lora(self) -> None:
        """Add the adapters, as they are scaled, to the model's weights, and take them off."""
        merge_lora(self.model)

    def save_pretrained(self, save_directory: str | Path, *args, **kwargs) -> None:
        """Write the pipeline. Raises ModelError where adapters would be lost."""
        check_merged(self.model)
        super().save_pretrained(save_directory, *args, **kwargs)
