"""What is measured: one row per metric. How it is computed stands in metrics/, one file per family.

A row says what the number means, in a sentence for people, and its protocol: all that another implementation
would have to do alike. `needs` names what a metric cannot do without, and so the reason why it is skipped.
"""

from dataclasses import dataclass

NEEDS = {
    "key_points": "the driving key points: give --guidance_types pose --guidance_input_channels K",
    "pose_estimator": "a pose estimator, as a judge: give --pose_estimator mediapipe or dwpose",
    "borders": "to know where the sampler's windows begin: give --context_frames and --context_overlap",
    "image_encoder": "a CLIP image encoder: give --image_encoder_name_or_path FOLDER",
    "lpips": "LPIPS's networks: give --lpips_path FILE (torchvision's vgg16 or alexnet, .pth) and "
    "--lpips_heads_path FILE (the published linear heads)",
    "face": "a face network: give --face_detector_path FILE and --face_recognizer_path FILE (ONNX)",
    "reference_image": "the reference image: put it into reference_images/",
    "inception": "the Inception network: give --inception_path FILE (TorchScript)",
    "i3d": "the I3D network: give --i3d_path FILE (TorchScript)",
    "resnet3d": "a 3D ResNet-50: give --resnet3d_path FILE (.pth or TorchScript)",
    "video_encoder": "a video encoder: give --video_encoder_path FOLDER (V-JEPA 2 or VideoMAE)",
    "model": "a model to ask: give --model_path instead of --predictions",
}
POINTS = ("key_points",)
JUDGED = ("key_points", "pose_estimator")
ONE_CLIP, TOO_SHORT = "there is one clip alone", "it takes two clips of 16 frames or more"
NO_POSE = "no pose is found in the prediction; look at it, or give another --pose_estimator"
NO_BEATS = "no stop of a movement, or no beat, is found; give longer clips"

PER_FRAME = "per frame, averaged over frames, then clips"
PER_STEP = "per pair of neighbouring frames, averaged over them, then clips"
PER_CLIP = "averaged over clips"
LEGACY = "as DisCo's code has it, to read published tables by, not to compare by"
OF_FRAMES = "16 frames of each clip, drawn evenly"
OF_WINDOWS = "windows of 16 frames, at most 4 of each clip, drawn evenly"


@dataclass(frozen=True)
class Metric:
    """A row of the catalogue.

    higher_is_better: None where the best value is neither high nor low. nothing: the reason where there is no
    value in spite of all that it needs.
    """

    name: str
    unit: str
    higher_is_better: bool | None
    meaning: str
    protocol: str
    needs: tuple[str, ...] = ()
    nothing: str = "the clips are single frames"


ROWS = (
    # Pixels
    Metric(
        "psnr", "dB", True, "How near the pixels are to the truth's.",
        f"10 log10(255^2 / mean squared error) over RGB, identical frames 100; {PER_FRAME}",
    ),
    Metric(
        "ssim", "", True, "Likeness of local structure to the truth; 1 is the same.",
        f"Gaussian window 11x11, sigma 1.5, K 0.01 and 0.03, mean over RGB (Wang et al. 2004); {PER_FRAME}",
    ),
    Metric(
        "l1", "levels", False, "Mean difference from the truth, in levels of 0 to 255.",
        f"mean absolute difference over RGB; {PER_FRAME}",
    ),
    Metric(
        "psnr_legacy", "dB", True, "PSNR with the overflow of published tables.",
        f"the difference squared in uint8; {LEGACY}; {PER_FRAME}",
    ),
    Metric(
        "ssim_legacy", "", True, "SSIM of grey images, as in published tables.",
        f"grey, uniform window 7x7; {LEGACY}; {PER_FRAME}",
    ),
    Metric(
        "l1_legacy", "levels / pixel", False, "L1 of published tables, which falls with the resolution.",
        f"L1 divided by H x W once more; {LEGACY}; {PER_FRAME}",
    ),
    Metric(
        "hand_psnr", "dB", True, "PSNR about the hands alone.",
        f"in a box about each hand's driving key points; {PER_FRAME} that show a hand",
        POINTS, "no hand is seen in any frame",
    ),
    Metric(
        "face_psnr", "dB", True, "PSNR about the face alone.",
        f"in a box about the face's driving key points; {PER_FRAME} that show a face",
        POINTS, "no face is seen in any frame",
    ),
    # Time
    Metric(
        "dtssd", "levels", False, "How differently the images change from frame to frame: flicker.",
        f"root mean square of the difference between both videos' frame differences; {PER_STEP}",
    ),
    Metric(
        "background_flicker", "levels", False, "How much the images change where nobody moves.",
        f"mean absolute change of the prediction outside the dilated skeleton; {PER_STEP}", POINTS,
    ),
    Metric(
        "seam_ratio", "", None, "Jumps where the sampler's windows meet; 1 is invisible.",
        "median jump of the prediction at the windows' borders over the median elsewhere, each divided by "
        f"the median of the two on either side of it that are at no border; {PER_CLIP}",
        ("borders",), "one window covers each clip: there is no border",
    ),
    Metric(
        "drift", "cosine", False, "How much the images leave what they were; 0 is not at all.",
        "cosine of image embeddings of frames a fifteenth of the clip apart, less that of frames half of it "
        f"apart; {OF_FRAMES}; {PER_CLIP}", ("image_encoder",), "the clips have fewer than 5 frames",
    ),
    Metric(
        "cmmd", "x 1000", False, "Distance between the predicted images and the true ones, as sets.",
        f"MMD^2 with an RBF kernel of CLIP image embeddings (arXiv:2401.09603), unbiased, over pairs of "
        f"different clips, x 1000; {OF_FRAMES}", ("image_encoder",), ONE_CLIP,
    ),
    # Pose
    Metric(
        "pck", "share", True, "Share of the joints that are where the driving pose has them.",
        f"18 body points, within 0.2 of the torso; one not found is misplaced; {PER_FRAME}", JUDGED, NO_POSE,
    ),
    Metric(
        "akd", "pixels", False, "Mean distance of the joints from the driving pose's.",
        f"of the 18 body points, those that both poses have; {PER_FRAME}", JUDGED, NO_POSE,
    ),
    Metric(
        "oks", "", True, "Likeness of the pose to the driving one, by COCO's tolerances; 1 is the same.",
        f"17 joints, the area 0.53 of their box; one not found is 0; {PER_FRAME}", JUDGED, NO_POSE,
    ),
    # Music
    Metric(
        "beat_alignment_gain", "", True, "Whether movements stop on the beat more than by chance (0).",
        "beat alignment (sigma 0.05 s, speed smoothed over 1/12 s, motion at 60 frames per second by cubic "
        f"splines) less its mean over 100 random shifts of the music; {PER_CLIP}",
        ("pose_estimator",), NO_BEATS,
    ),
    Metric(
        "beat_shifts_beaten", "share", True,
        "Share of shifted music that fits worse; 0.5 by chance, 0 of a still.",
        f"of the shifts of beat_alignment_gain, those with a lower score; {PER_CLIP}",
        ("pose_estimator",), NO_BEATS,
    ),
    Metric(
        "beat_coverage", "stops / beat", None, "Whether the dancer moves: 1 is a movement for each beat.",
        f"stops of movements over beats of the music; {PER_CLIP}", ("pose_estimator",), NO_BEATS,
    ),
    # With files of the user's
    Metric(
        "lpips", "", False, "Distance from the truth as people see it.",
        f"LPIPS on [-1, 1] (arXiv:1801.03924); {PER_FRAME}", ("lpips",),
    ),
    Metric(
        "lpips_legacy", "", False, "LPIPS fed with another range, as in published tables.",
        f"LPIPS on [0, 1]; {LEGACY}; {PER_FRAME}", ("lpips",),
    ),
    Metric(
        "face_similarity", "cosine", True, "Whether the face is that of the reference image.",
        f"cosine of face embeddings; {PER_FRAME} that show a face",
        ("face", "reference_image"), "no face is found",
    ),
    Metric(
        "fid", "", False, "Frechet distance between the images as sets; biased where clips are few.",
        f"of Inception's features; {OF_FRAMES}", ("inception",), "too few frames",
    ),
    Metric(
        "fvd", "", False, "Frechet distance between short clips as sets; biased where clips are few.",
        f"of I3D's features; {OF_WINDOWS}", ("i3d",), TOO_SHORT,
    ),
    Metric(
        "fid_vid", "", False, "Frechet distance between short clips as sets, by a 3D ResNet.",
        f"of a 3D ResNet-50's features; {OF_WINDOWS}", ("resnet3d",), TOO_SHORT,
    ),
    Metric(
        "video_mmd", "x 1000", False, "Distance between the predicted short clips and true ones, as sets.",
        f"polynomial MMD^2 of a video encoder's features (arXiv:2410.05203), unbiased, over pairs of "
        f"different clips, x 1000; {OF_WINDOWS}", ("video_encoder",), TOO_SHORT,
    ),
    # The model's own losses
    Metric(
        "guidance_gap", "", True, "How much the model's loss rises with another clip's guidance.",
        "relative to the loss, at fixed noise and timesteps", ("model",), ONE_CLIP,
    ),
)  # fmt: skip
METRICS = {metric.name: metric for metric in ROWS}


def metric_of(name: str) -> Metric:
    """Return the row of a metric; that of guidance_gap for guidance_gap/TYPE and guidance_gap_alone/TYPE."""
    return METRICS.get(name) or METRICS["guidance_gap"]
