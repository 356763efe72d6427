"""What our pipelines share as saved folders: whole weights, and class names that outlive moves of code."""

import torch
from diffusers import DiffusionPipeline

from models.frozen import without_false_alarm
from models.model_files import align_weights


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
