"""Encoders of images and of short videos: CLIP, Inception, VideoMAE, V-JEPA 2."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, CLIPVisionModelWithProjection, VideoMAEModel, VJEPA2Model

from datasets.transforms import CLIP_MEAN, CLIP_STD
from models.frozen import without_false_alarm
from models.model_files import align_weights, load_component, local_component
from models.weight_files import reason_of
from system.errors import ModelError

from .frames import fitted, normalised, rows_of
from .torch_script import ScriptFile

INCEPTION_SIZE = (299, 299)
VIDEO_MODELS = {"videomae": VideoMAEModel, "vjepa2": VJEPA2Model}
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_AT_ONCE = 8  # images

FeatureNetwork = Callable[[np.ndarray], np.ndarray]  # uint8 frames to rows of features


class ImageEncoder:
    """uint8 frames [F, H, W, 3] to CLIP's projected image embeddings, float32 [F, D].

    For a model's own encoder (`pipeline.image_encoder`) as for one of the user's. Frames are squeezed to the
    encoder's square, as in training and sampling.
    """

    def __init__(self, model: CLIPVisionModelWithProjection, source: str | Path = "the image encoder"):
        self.model, self.source = model.eval(), source

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        size = (self.model.config.image_size,) * 2
        parts = [frames[start : start + _AT_ONCE] for start in range(0, len(frames), _AT_ONCE)]
        rows = [
            rows_of(self._embed, normalised(fitted(part, size), CLIP_MEAN, CLIP_STD), self.source, "images")
            for part in parts
        ]
        return np.concatenate(rows) if rows else np.zeros((0, self.model.config.projection_dim), np.float32)

    def _embed(self, images: Tensor) -> Tensor:
        return self.model(images.to(self.model.device, self.model.dtype)).image_embeds


def load_image_encoder(path: str | Path, device: str | torch.device = "cpu") -> ImageEncoder:
    """Return the CLIP image encoder of a folder (its own, or a model's with image_encoder/ in it).

    A hub id works as in training.
    """
    source, subfolder = local_component(path, "image_encoder")
    with without_false_alarm():
        model = load_component(lambda: CLIPVisionModelWithProjection, source, subfolder)
    return ImageEncoder(model.to(device), path)


def load_inception(path: str | Path, device: str | torch.device = "cpu") -> FeatureNetwork:
    """Return uint8 frames [F, H, W, 3] to Inception's pooled features [F, 2048], of a TorchScript file.

    Made for `inception-2015-12-05.pt` of StyleGAN's metrics, which takes 0..255 and scales by itself. Frames
    are brought to 299 x 299 before, bicubically and smoothed ("clean" FID, arXiv:2104.11222).
    """
    script = ScriptFile(path, "Inception as TorchScript (inception-2015-12-05.pt)", device)

    def embed(frames: np.ndarray) -> np.ndarray:
        parts = [frames[start : start + _AT_ONCE] for start in range(0, len(frames), _AT_ONCE)]
        inputs = (fitted(part, INCEPTION_SIZE) for part in parts)
        rows = [rows_of(script, one, script.path, "images", return_features=True) for one in inputs]
        return np.concatenate(rows)

    return embed


def load_video_encoder(path: str | Path, device: str | torch.device = "cpu") -> FeatureNetwork:
    """Return uint8 clips [N, F, H, W, 3] to features [N, D], of a transformers folder.

    VideoMAE or V-JEPA 2. The mean of the last layer's tokens (as JEDi's without its probe). VideoMAE is shown
    as many frames as it was trained on, drawn evenly; V-JEPA 2 all.
    """
    model = _load_video_model(Path(path).expanduser()).to(device)
    config = model.config
    is_jepa = config.model_type == "vjepa2"
    side = config.crop_size if is_jepa else config.image_size
    size = (side, side) if isinstance(side, int) else tuple(side)
    mean, std = _normalisation(Path(path).expanduser())
    options = {"skip_predictor": True} if is_jepa else {}

    def encode(clips: Tensor) -> Tensor:
        return model(clips.to(model.device), **options).last_hidden_state.mean(dim=1)

    def embed(clips: np.ndarray) -> np.ndarray:
        if not is_jepa:
            clips = clips[:, np.linspace(0, clips.shape[1] - 1, config.num_frames).round().astype(int)]
        inputs = torch.stack([normalised(fitted(clip, size, "bilinear"), mean, std) for clip in clips])
        return rows_of(encode, inputs, path, "clips")

    return embed


def _load_video_model(folder: Path) -> torch.nn.Module:
    expected = "a transformers folder of VideoMAE or V-JEPA 2 (config.json and model.safetensors)"
    if not (folder / "config.json").is_file():
        problem = "has no config.json" if folder.is_dir() else "is no folder"
        raise ModelError(f"{folder} {problem}: expected {expected}")
    try:
        kind = AutoConfig.from_pretrained(folder, local_files_only=True).model_type
        if kind not in VIDEO_MODELS:
            raise ModelError(f"{folder} holds a {kind} model: expected {expected}")
        with without_false_alarm():
            model, info = VIDEO_MODELS[kind].from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    except ModelError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} cannot be loaded: {reason_of(error)}; expected {expected}") from error
    # Heads for training or classification may lie beside the encoder; all of the encoder must be there.
    lost = sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"])))
    if lost := [key for key in lost if not key.startswith("predictor.")]:
        raise ModelError(
            f"{folder} lacks {len(lost)} weights of its encoder ({lost[0]}, ...): expected {expected}"
        )
    align_weights(model)
    return model.eval()


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and deviation that a folder states for its images, else ImageNet's."""
    names = ("video_preprocessor_config.json", "preprocessor_config.json")
    for path in (folder / name for name in names if (folder / name).is_file()):
        try:
            stated = json.loads(path.read_text(encoding="utf-8"))
            mean, std = stated.get("image_mean", _IMAGENET_MEAN), stated.get("image_std", _IMAGENET_STD)
            (_, _, _), (_, _, _) = mean, std
            return tuple(map(float, mean)), tuple(map(float, std))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            expected = "image_mean and image_std, three numbers each"
            raise ModelError(f"{path} cannot be read: {reason_of(error)}; expected {expected}") from error
    return _IMAGENET_MEAN, _IMAGENET_STD
