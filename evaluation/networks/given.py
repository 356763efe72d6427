"""Networks by the flags that name their files, and what the protocol says of them."""

from collections.abc import Sequence
from pathlib import Path

import torch

from .encoders import load_image_encoder, load_inception, load_video_encoder
from .faces import load_face_network
from .perceptual import load_perceptual_network
from .videos import load_i3d, load_resnet3d

FILE_FLAGS = {  # {network, as the catalogue's needs name it: the flags of its files}
    "image_encoder": ("image_encoder_name_or_path",),
    "lpips": ("lpips_path", "lpips_heads_path"),
    "face": ("face_detector_path", "face_recognizer_path"),
    "inception": ("inception_path",),
    "i3d": ("i3d_path",),
    "resnet3d": ("resnet3d_path",),
    "video_encoder": ("video_encoder_path",),
}
LOADERS = {
    "image_encoder": load_image_encoder, "lpips": load_perceptual_network, "inception": load_inception,
    "i3d": load_i3d, "resnet3d": load_resnet3d, "video_encoder": load_video_encoder,
}  # fmt: skip


def load_network(name: str, paths: Sequence[str], device: torch.device):
    """Return the network of some files. Raises ModelError."""
    return load_face_network(*paths) if name == "face" else LOADERS[name](*paths, device)


def describe_files(paths: Sequence[str]) -> str:
    """Return names and sizes: two evaluations with other files are not measured alike."""
    words = []
    for path in map(Path, paths):
        weights = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        size = sum(file.stat().st_size for file in weights if file.is_file())
        words.append(f"{path.name} ({size} bytes)")
    return ", ".join(words)
