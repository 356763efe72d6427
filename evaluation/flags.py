"""Flags of an evaluation: what is measured, over which frames, and which networks judge it."""

from collections.abc import Callable

from system.command_line import number

from .catalogue import METRICS
from .floors import FLOORS


def add_evaluation_flags(add: Callable) -> None:
    """Add what is evaluated, over which frames."""
    positive = number(int, 1)
    # fmt: off
    add("--model_path", help="a trained model, to make the predictions: OUTPUT_DIR/final, or a checkpoint-N")
    add("--predictions", metavar="DIR", help="finished videos, of any model: NAME.mp4 for each of the data")
    add("--compare", nargs="+", metavar="EVAL", help="finished evaluations, compared over the same clips")
    add("--data_dir", metavar="DIR", help="the data folder with the true videos")
    add("--output_dir", required=True, metavar="DIR",
        help="the folder to write; what is done of the same evaluation is kept")
    add("--guidance_types", nargs="+", default=[], metavar="TYPE",
        help="with --predictions: the data's guidance, for the metrics of pose and music")
    add("--guidance_input_channels", type=positive, nargs="+", default=[], metavar="N",
        help="one number per type")
    add("--driving_poses", metavar="DIR",
        help="pose tracks that drive the videos instead of the data's: NAME, as sample_music_to_pose.py "
        "writes it, for each of the data")
    add("--metrics", nargs="+", choices=list(METRICS), metavar="NAME", help="these alone (default: all)")
    add("--floors", nargs="*", default=list(FLOORS), choices=list(FLOORS), metavar="NAME",
        help=f"what every number stands beside (default: {' '.join(FLOORS)})")
    add("--num_clips", type=positive, help="the first so many videos of the folder (default: all)")
    add("--num_frames", type=positive, help="frames of each video (default: all)")
    add("--start_frame", type=number(int, 0), default=0, help="true frame to begin at (default: 0)")
    add("--frame_stride", type=positive, help="the true video's frames per frame (default: as trained, or 1)")
    add("--resolution", type=positive, nargs="+",
        help="side, or height and width, to which the truth is cut (default: as trained, or its own)")
    # fmt: on


def add_judges_flags(add: Callable) -> None:
    """Add the networks that some metrics and floors need."""
    # fmt: off
    add("--pose_estimator", metavar="NAME",
        help="judge of the poses: mediapipe, dwpose, your own MODULE:NAME, or none (default: mediapipe where "
        "it is installed)")
    add("--dwpose_dir", metavar="DIR", help="folder with DWPose's two models")
    add("--image_encoder_name_or_path", metavar="PATH",
        help="CLIP image encoder, for cmmd and drift (default: the model's own)")
    add("--vae_model_name_or_path", metavar="PATH",
        help="VAE, for the floor vae_round_trip (default: the model's own)")
    add("--lpips_path", metavar="FILE", help="torchvision's vgg16 or alexnet (.pth), for lpips")
    add("--lpips_heads_path", metavar="FILE", help="its published linear heads (.pth)")
    add("--face_detector_path", metavar="FILE", help="YuNet (.onnx), for face_similarity")
    add("--face_recognizer_path", metavar="FILE", help="SFace (.onnx)")
    add("--inception_path", metavar="FILE", help="Inception (TorchScript), for fid")
    add("--i3d_path", metavar="FILE", help="I3D (TorchScript), for fvd")
    add("--resnet3d_path", metavar="FILE", help="3D ResNet-50 (.pth or TorchScript), for fid_vid")
    add("--video_encoder_path", metavar="DIR", help="V-JEPA 2 or VideoMAE, for video_mmd")
    # fmt: on
