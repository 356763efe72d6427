"""Networks that a user gives by path, for the metrics that need one: loaded, and fed as they expect.

None of them comes with this repository. Each loader raises ModelError with the path and what was expected;
weights are read without running any code of theirs.
"""

from .encoders import ImageEncoder, load_image_encoder, load_inception, load_video_encoder
from .faces import load_face_network
from .perceptual import load_perceptual_network
from .videos import load_i3d, load_resnet3d

__all__ = [
    "ImageEncoder",
    "load_face_network",
    "load_i3d",
    "load_image_encoder",
    "load_inception",
    "load_perceptual_network",
    "load_resnet3d",
    "load_video_encoder",
]
