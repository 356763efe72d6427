"""A TorchScript file: opened, and called with those of the options that it knows."""

from pathlib import Path

import torch
from torch import Tensor

from models.weight_files import reason_of
from system.errors import ModelError


class ScriptFile:
    """A network out of a TorchScript file, on a device."""

    def __init__(self, path: str | Path, expected: str, device: str | torch.device = "cpu"):
        """Raise ModelError when there is no such file, or it is no TorchScript: `expected` is."""
        self.path, self.device = Path(path).expanduser(), device
        if not self.path.is_file():
            problem = "is a folder" if self.path.is_dir() else "does not exist"
            raise ModelError(f"{self.path} {problem}: expected {expected}")
        try:
            self.network = torch.jit.load(str(self.path), map_location=device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            reason = "it holds no TorchScript program" if "constants.pkl" in str(error) else reason_of(error)
            raise ModelError(f"{self.path} cannot be loaded: {reason}; expected {expected}") from error
        self._known = {argument.name for argument in self.network.forward.schema.arguments}

    def __call__(self, inputs: Tensor, **options: bool) -> Tensor:
        known = {name: value for name, value in options.items() if name in self._known}
        return self.network(inputs.to(self.device), **known)
