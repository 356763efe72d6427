"""Evaluate a trained model, or finished videos of any model: metrics, each beside its floors, and how sure.

`python evaluate_guidance.py --help` lists all flags; README.md shows how the numbers are read. Exit code 2:
wrong input, or a clip that could not be evaluated; each has one line that says what to do.
"""

import system.waiting  # before torch is loaded

import argparse
import contextlib
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from caching.source_digests import values_digest
from datasets import DataError
from datasets.media.sound import read_audio
from evaluation.catalogue import METRICS
from evaluation.clips import ClipSettings, TruthFolder
from evaluation.comparing import compare
from evaluation.evaluating import VIDEOS_FOLDER, Evaluator, FinishedVideos, SampledVideos, Work, say
from evaluation.floors import FLOORS
from evaluation.floors import NEEDS as NO_FLOOR
from evaluation.measuring import Tools
from evaluation.networks import ImageEncoder
from evaluation.networks.given import FILE_FLAGS, describe_files, load_network
from evaluation.page.comparison import write_comparison
from evaluation.page.players import source_of
from evaluation.page.report import write_report
from evaluation.page.table import write_table
from evaluation.results import (
    METRICS_NAME,
    ClipStore,
    measure_sets,
    missing_lines,
    summarize,
    write_json,
    written_to,
)
from evaluation.sampling import RoundTrip, Sampler, SamplingSettings
from models.frozen import load_vae
from models.model_files import quiet_libraries
from pipelines.loading import choose_device, frame_size, load_pipeline
from preparation.music.features import check_music_features, find_beats
from preparation.pose import dwpose, mediapipe_pose  # noqa: F401 (estimators register themselves)
from preparation.pose.estimators import check_pose_estimator, follow_dancer, make_pose_estimator
from preparation.settings import Settings as PreparationSettings
from system.command_line import Parser, number, run_main
from system.errors import ConfigError
from system.folder_lock import FolderLock
from system.user_code import import_user_modules
from training.checkpoints.pipeline import is_checkpoint, pipeline_of_checkpoint
from training.objective import DiffusionObjective

PROTOCOL_VERSION = 1
LARGEST_TINY = 10_000_000  # weights; the smallest CLIP has 87 million
HEARD_BEFORE = 2.0  # seconds, so that a clip's first beat has neighbours
GATHER_LIMIT = timedelta(days=7)  # for the process that is done first


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong input or a clip that failed, 130 stopped by Ctrl-C."""
    when_stopped = "stopped; the same command goes on where it was"
    return run_main(
        "evaluate_guidance.py", lambda: evaluate(parse_arguments(argv)), when_stopped=when_stopped
    )


def evaluate(arguments: argparse.Namespace) -> int:
    """Measure every clip that is not done, then write what all of them say; return the exit code."""
    if arguments.compare:
        return write_differences(arguments)
    device = choose_device(arguments.device, arguments.mixed_precision)
    processes = join_processes(device)
    device = device if arguments.device else processes.device  # each process has a GPU of its own
    output_dir = make_output_dir(arguments.output_dir)
    lock = take_output_dir(output_dir) if processes.is_main_process else None
    try:
        quiet_libraries()
        import_user_modules(arguments.guidance_modules)
        evaluator, protocol = set_up(arguments, device)
        work = Work(evaluator, protocol, ClipStore(output_dir))
        sample_ids = evaluator.folder.sample_ids[: arguments.num_clips]
        mine = sample_ids[processes.process_index :: processes.num_processes]
        faults = work.run(mine, shows_progress=processes.is_main_process)
        faults = {name: fault for share in gather_object([faults]) for name, fault in share.items()}
        is_main = processes.is_main_process
        processes.destroy_process_group()
        with written_to(output_dir):
            return sum_up(work, sample_ids, faults, output_dir) if is_main else 0
    finally:
        if lock is not None:
            lock.release()


def write_differences(arguments: argparse.Namespace) -> int:
    """Compare finished evaluations; return the exit code."""
    comparison = compare(arguments.compare)
    output_dir = make_output_dir(arguments.output_dir)
    with written_to(output_dir):
        path = write_comparison(comparison, output_dir)
    for name, sentences in comparison.sentences().items():
        print(f"{name} against {comparison.first}:", *(f"  {sentence}" for sentence in sentences), sep="\n")
    for note in comparison.notes:
        print(f"note: {note}")
    print(f"to look at: {path}")
    return 0


def join_processes(device: torch.device) -> PartialState:
    """Return the processes that a launcher started, or this one alone."""
    num_launched = int(os.environ.get("WORLD_SIZE", 1))
    # Several processes without a GPU talk by gloo; accelerate wants to be told, else each is alone.
    on_cpu = num_launched > 1 and device.type == "cpu"
    return PartialState(cpu=True, timeout=GATHER_LIMIT) if on_cpu else PartialState()


def make_output_dir(output_dir: str) -> Path:
    """Return the folder, made where it is not there. Raises ConfigError where it cannot be written."""
    probe = Path(output_dir) / f".probe-{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"--output_dir {output_dir}: cannot be written ({reason}); give another") from None
    return Path(output_dir)


def take_output_dir(output_dir: Path) -> FolderLock:
    """Keep other runs out. Raises DataError where one is writing there."""
    fix = "wait until it ends, or give another --output_dir"
    return FolderLock(output_dir, output_dir / ".lock", holder="evaluate_guidance.py", fix=fix)


def sum_up(work: Work, sample_ids: Sequence[str], faults: dict[str, str], output_dir: Path) -> int:
    """Write metrics.json, the table and the page; return the exit code."""
    results = work.results(sample_ids)
    if not results:
        raise ConfigError(f"none of the {len(sample_ids)} clips could be evaluated; each has its line above")
    left_out = {name: faults[name] for name in sample_ids if name in faults}  # in order, whoever had them
    protocol = {**work.protocol, "num_clips": len(results), "left_out": left_out, "versions": versions()}
    together = measure_sets(results) | work.gaps(results, DiffusionObjective)
    content = {"protocol": protocol, **summarize(results, together, work.evaluator.wanted, remarks_of(work))}
    no_floors = {name: NO_FLOOR[name] for name in work.evaluator.floors if name not in content["floors"]}
    content["skipped"] |= no_floors
    write_json(output_dir / METRICS_NAME, content)
    for name, row in content["metrics"].items():
        ends = "" if math.isnan(row["low"]) else f"{row['low']:.4g} to {row['high']:.4g}"
        print(f"{name:24}{row['value']:10.4g}  {ends:20} {row['unit']}")
    for name, reason in content["skipped"].items():
        print(f"{name:24}skipped: {reason}")
    for line in missing_lines(results, content["metrics"]):
        say(f"note: {line}")
    table_path = write_table(output_dir)
    page_path = write_report(output_dir, lambda name: source_of(work.evaluator.seen(name)))
    failed = f", {len(faults)} failed" if faults else ""
    print(f"{len(results)} clips{failed}: {output_dir / METRICS_NAME}, {table_path}; to look at: {page_path}")
    return 2 if faults else 0


def remarks_of(work: Work) -> dict[str, str]:
    """Return {metric: what else to say}: a tiny encoder, as the demo's, knows too little to judge."""
    encoder = work.evaluator.tools.networks.get("image_encoder")
    if encoder is None or sum(one.numel() for one in encoder.model.parameters()) > LARGEST_TINY:
        return {}
    return dict.fromkeys(("cmmd", "drift"), "by a tiny image encoder: no evidence of quality")


def versions() -> dict[str, str]:
    return {module.__name__: module.__version__ for module in (torch, np, av, cv2)}


# ---- what is evaluated, and with what ----


def set_up(arguments: argparse.Namespace, device: torch.device) -> tuple[Evaluator, dict]:
    """Return what measures a clip, and the protocol: all that decides its numbers. Raises UserError."""
    sampler = make_sampler(arguments, device) if arguments.model_path else None
    channels = channels_of(arguments, sampler)
    settings = clip_settings(arguments, sampler)
    folder = TruthFolder(arguments.data_dir, channels, settings)
    for fault in folder.faults if PartialState().is_main_process else ():
        say(f"note: {fault}")
    context = (arguments.context_frames, arguments.context_overlap)
    if sampler is not None:
        predictions = SampledVideos(sampler, Path(arguments.output_dir) / VIDEOS_FOLDER)
    else:
        predictions = FinishedVideos(checked_predictions(arguments.predictions), context)
        check_names(predictions, folder)
    tools, described = make_tools(arguments, sampler, device)
    wanted = list(dict.fromkeys(arguments.metrics or METRICS))  # each once, if it is named twice
    floors = list(dict.fromkeys(arguments.floors))
    round_trip = make_round_trip(arguments, sampler, device)
    evaluator = Evaluator(folder, predictions, tools, wanted, floors, round_trip)
    protocol = {
        "version": PROTOCOL_VERSION,
        "model_path" if sampler else "predictions": str(arguments.model_path or arguments.predictions),
        "data_dir": str(arguments.data_dir),
        "guidance": channels,
        "clips": dataclasses.asdict(settings),
        "sampling": dataclasses.asdict(sampler.settings) if sampler else None,
        "context": context,
        "metrics": wanted,
        "floors": {name: FLOORS[name] for name in floors},
        "vae": round_trip and values_digest(round_trip.frozen.vae),
        **described,
    }
    return evaluator, protocol


def make_sampler(arguments: argparse.Namespace, device: torch.device) -> Sampler:
    """Return the model of --model_path, ready to sample. Raises ModelError, ConfigError."""
    path = Path(arguments.model_path)
    pipeline = pipeline_of_checkpoint(path) if is_checkpoint(path) else load_pipeline(path)
    if arguments.enable_xformers_memory_efficient_attention:
        pipeline.enable_xformers_memory_efficient_attention()
    shared = {field.name for field in dataclasses.fields(SamplingSettings)}
    settings = SamplingSettings(**{name: value for name, value in vars(arguments).items() if name in shared})
    return Sampler(pipeline.to(device), settings, path)


def channels_of(arguments: argparse.Namespace, sampler: Sampler | None) -> dict[str, int]:
    """Return {guidance type: its number of channels}: the model's own, or as the flags say."""
    if sampler is not None:
        config = sampler.pipeline.guidance_encoders.config
        return dict(zip(config.guidance_types, config.guidance_input_channels, strict=True))
    types, channels = arguments.guidance_types, arguments.guidance_input_channels
    if len(types) != len(channels):
        raise ConfigError(
            f"--guidance_types {' '.join(types)}: --guidance_input_channels needs one number for each of them"
        )
    return dict(zip(types, channels, strict=True))


def clip_settings(arguments: argparse.Namespace, sampler: Sampler | None) -> ClipSettings:
    """Return which frames are compared, and how they are fitted."""
    given = arguments.resolution
    resolution = (given[0], given[-1]) if given else None
    stride, fit = arguments.frame_stride, arguments.fit
    if sampler is not None:
        config = sampler.pipeline.config
        resolution = frame_size(given, sampler.pipeline)
        stride, fit = stride or config.frame_stride, fit or config.fit
    return ClipSettings(
        arguments.start_frame, arguments.num_frames, stride or 1, resolution, fit or "auto",
        arguments.music_feature_fps,
    )  # fmt: skip


def checked_predictions(path: str) -> Path:
    """Return the folder of finished videos. Raises DataError where there are none in it."""
    folder = Path(path)
    if not folder.is_dir():
        problem = "is a file, a folder was expected" if folder.exists() else "no such folder"
        raise DataError(folder, problem, "give the folder of the finished videos, NAME.mp4 each")
    if not any(folder.glob("*.mp4")):
        names = sorted(entry.name for entry in folder.iterdir())
        problem = f"no .mp4 in it, {f'only {names[0]} and the like' if names else 'nothing at all'}"
        raise DataError(folder, problem, "give the folder of the finished videos, NAME.mp4 each")
    return folder


def check_names(predictions: FinishedVideos, folder: TruthFolder) -> None:
    """Raise DataError where no prediction has the name of a true video."""
    if not predictions.paths.keys() & set(folder.sample_ids):
        found, wanted = min(predictions.paths), folder.sample_ids[0]
        problem = (
            f"none of its videos has the name of one of the data ({found}.mp4, but {wanted}.mp4 expected)"
        )
        raise DataError(predictions.folder, problem, "rename them, or give another --data_dir")


def make_tools(
    arguments: argparse.Namespace, sampler: Sampler | None, device: torch.device
) -> tuple[Tools, dict]:
    """Return what metrics need beside the clips, and what the protocol says of it. Raises UserError."""
    files = {name: [getattr(arguments, flag) for flag in flags] for name, flags in FILE_FLAGS.items()}
    files = {name: paths for name, paths in files.items() if None not in paths}
    tools = Tools(networks={name: load_network(name, paths, device) for name, paths in files.items()})
    described = {name: describe_files(paths) for name, paths in files.items()}
    described["pose_estimator"] = add_pose_estimator(arguments, tools)
    if sampler is not None and "image_encoder" not in tools.networks:
        tools.networks["image_encoder"] = ImageEncoder(sampler.pipeline.image_encoder)
    encoder = tools.networks.get("image_encoder")
    described["image_encoder"] = encoder and values_digest(encoder.model)
    with contextlib.suppress(ConfigError):  # librosa is not installed: beats are those of the data's features
        check_music_features("aist35")
        tools.listen = hear_beats
    described["hears_beats"] = tools.listen is not None
    if sampler is not None:
        tools.networks["model"] = sampler
    return tools, described


def add_pose_estimator(arguments: argparse.Namespace, tools: Tools) -> str | None:
    """Add the estimator to the tools and return its description; None where there is none."""
    name = arguments.pose_estimator
    if name == "none":
        return None
    settings = PreparationSettings(pose_estimator=name or "mediapipe", dwpose_dir=arguments.dwpose_dir)
    try:
        check_pose_estimator(settings)
    except ConfigError as error:
        if name is not None:
            raise
        tools.lacks["pose_estimator"] = str(error)
        return None
    estimator = make_pose_estimator(settings)
    tools.pose_estimator = lambda frames, frame_rate: follow_dancer(estimator, frames, frame_rate)
    return estimator.description


@functools.lru_cache(maxsize=1)  # a clip's floors have its sound
def hear_beats(path: Path, start_seconds: float, duration_seconds: float) -> np.ndarray:
    """Return the seconds of the beats in a part of a media file. Raises DataError where it has no sound."""
    before = min(HEARD_BEFORE, max(0.0, start_seconds))
    sound, rate = read_audio(path, start_seconds - before, before + duration_seconds)
    _, beats = find_beats(sound.mean(axis=0), rate)
    return beats + start_seconds - before


def make_round_trip(
    arguments: argparse.Namespace, sampler: Sampler | None, device: torch.device
) -> RoundTrip | None:
    """Return frames through --vae_model_name_or_path, or through the model's own VAE; None without either."""
    if arguments.vae_model_name_or_path is not None:
        return RoundTrip(load_vae(arguments.vae_model_name_or_path).to(device))
    return RoundTrip(sampler.pipeline.vae) if sampler is not None else None


# ---- The command line ----


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's flags."""
    parser = Parser(
        prog="evaluate_guidance.py", description=__doc__.split("\n")[0],
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32, width=110),
    )  # fmt: skip
    for add_flags in (add_evaluation_flags, add_sampling_flags, add_judges_flags):
        add_flags(parser.add_argument)
    return parser


def add_evaluation_flags(add: Callable) -> None:
    """Add what is evaluated, over which frames."""
    positive, rate = number(int, 1), number(float, 0, above=True)
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
    add("--guidance_modules", nargs="+", default=[], help="your modules that register guidance encoders")
    add("--metrics", nargs="+", choices=list(METRICS), metavar="NAME", help="these alone (default: all)")
    add("--floors", nargs="*", default=list(FLOORS), choices=list(FLOORS), metavar="NAME",
        help=f"what every number stands beside (default: {' '.join(FLOORS)})")
    add("--num_clips", type=positive, help="the first so many videos of the folder (default: all)")
    add("--num_frames", type=positive, help="frames of each video (default: all)")
    add("--start_frame", type=number(int, 0), default=0, help="true frame to begin at (default: 0)")
    add("--frame_stride", type=positive, help="the true video's frames per frame (default: as trained, or 1)")
    add("--music_feature_fps", type=rate, help="music rows per second, where it is not one row per frame")
    add("--resolution", type=positive, nargs="+",
        help="side, or height and width, to which the truth is cut (default: as trained, or its own)")
    add("--fit", choices=("auto", "crop", "pad"),
        help="crop or pad what has another shape (default: as trained)")
    # fmt: on


def add_sampling_flags(add: Callable) -> None:
    """Add how --model_path makes its predictions, as sample_guidance.py has it."""
    positive = number(int, 1)
    # fmt: off
    add("--num_inference_steps", type=positive, default=25, help="sampling steps (default: 25)")
    add("--guidance_scale", type=number(float, 0), default=3.5,
        help="classifier-free guidance (default: 3.5)")
    add("--seed", type=number(int, 0), default=42, help="seed of the first clip's noise (default: 42)")
    add("--context_frames", type=positive,
        help="frames made together (default: as trained); of --predictions, for seam_ratio")
    add("--context_overlap", type=number(int, 0), help="frames that windows share (default: a quarter)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="autocast (default: no)")
    add("--device", help="cuda, cuda:1, cpu, ... (default: a GPU where there is one)")
    add("--enable_xformers_memory_efficient_attention", action="store_true",
        help="attention by xformers instead of PyTorch")
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


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed flags. Raises ConfigError."""
    arguments = build_parser().parse_args(argv)
    forms = [name for name in ("model_path", "predictions", "compare") if getattr(arguments, name)]
    if len(forms) != 1:
        given = " and ".join(f"--{name}" for name in forms) or "none of them"
        raise ConfigError(f"give one of --model_path, --predictions and --compare, not {given}")
    if not arguments.compare and not arguments.data_dir:
        raise ConfigError(f"--{forms[0]} needs --data_dir, the folder with the true videos")
    if arguments.resolution is not None and len(arguments.resolution) > 2:
        raise ConfigError("--resolution: give one side, or a height and a width")
    for first, second in (FILE_FLAGS["lpips"], FILE_FLAGS["face"]):
        if (getattr(arguments, first) is None) != (getattr(arguments, second) is None):
            raise ConfigError(f"--{first} and --{second} go together")
    if arguments.num_inference_steps > 1000:
        raise ConfigError("--num_inference_steps: there are 1000 steps at most")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
