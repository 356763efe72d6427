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
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from caching.source_digests import values_digest
from datasets.media.sound import read_audio
from datasets.report.page import count
from evaluation.catalogue import METRICS
from evaluation.clips.truth import ClipSettings, TruthFolder
from evaluation.comparing import compare
from evaluation.evaluating import VIDEOS_FOLDER, Evaluator, FinishedVideos, SampledVideos, Work, say
from evaluation.flags import add_evaluation_flags, add_judges_flags
from evaluation.floors import FLOORS
from evaluation.floors import NEEDS as NO_FLOOR
from evaluation.measuring import Tools
from evaluation.networks import ImageEncoder
from evaluation.networks.given import FILE_FLAGS, describe_files, load_network
from evaluation.page.comparison import write_comparison
from evaluation.page.kept import METRICS_NAME
from evaluation.page.players import source_of
from evaluation.page.report import write_report
from evaluation.page.table import write_table
from evaluation.results import (
    ClipStore,
    measure_sets,
    missing_lines,
    summarize,
    write_json,
    written_to,
)
from evaluation.sampling import RoundTrip, Sampler, SamplingSettings
from models.compilation import compile_blocks
from models.frozen import load_vae
from models.model_files import quiet_libraries
from pipelines.flags import (
    add_input_flags,
    add_lora_flags,
    add_sampling_flags,
    check_sampling_flags,
    lora_scales,
)
from pipelines.loading import add_adapters, choose_device, frame_size, load_pipeline
from preparation.music.features import check_music_features, find_beats
from preparation.pose import dwpose, mediapipe_pose  # noqa: F401 (estimators register themselves)
from preparation.pose.estimators import check_pose_estimator, follow_dancer, make_pose_estimator
from preparation.settings import Settings as PreparationSettings
from system.command_line import Parser, run_main
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
        clips = count(len(sample_ids), "clip")
        raise ConfigError(f"none of {clips} could be evaluated; each has its line above")
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
    clips, metrics_path = count(len(results), "clip"), output_dir / METRICS_NAME
    print(f"{clips}{failed}: {metrics_path}, {table_path}; to look at: {page_path}")
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
    driving_poses = driving_poses_of(arguments, channels)
    folder = TruthFolder(arguments.data_dir, channels, settings, driving_poses)
    for fault in folder.faults if PartialState().is_main_process else ():
        say(f"note: {fault}")
    context = (arguments.context_frames, arguments.context_overlap)
    if sampler is not None:
        predictions = SampledVideos(sampler, Path(arguments.output_dir) / VIDEOS_FOLDER)
    else:
        predictions = FinishedVideos(Path(arguments.predictions), context)
        predictions.check(folder)
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
        "sampling": sampler.settings.protocol if sampler else None,
        "context": context,
        "metrics": wanted,
        "floors": {name: FLOORS[name] for name in floors},
        "vae": round_trip and values_digest(round_trip.frozen.vae),
        **described,
    }
    if driving_poses is not None:
        protocol["driving_poses"] = str(driving_poses)
    return evaluator, protocol


def driving_poses_of(arguments: argparse.Namespace, channels: dict[str, int]) -> Path | None:
    """Return the folder of --driving_poses. Raises ConfigError where nothing takes a pose, or it is none."""
    if arguments.driving_poses is None:
        return None
    path = Path(arguments.driving_poses)
    if not path.is_dir():
        raise ConfigError(
            f"--driving_poses {path}: no such folder; give the one that holds the tracks, NAME each"
        )
    if "pose" not in channels:
        fix = "take the flag away" if arguments.model_path else "add pose to --guidance_types"
        raise ConfigError(f"--driving_poses: there is no pose in the guidance; {fix}")
    return path


def make_sampler(arguments: argparse.Namespace, device: torch.device) -> Sampler:
    """Return the model of --model_path, ready to sample. Raises ModelError, ConfigError."""
    path = Path(arguments.model_path)
    pipeline = pipeline_of_checkpoint(path) if is_checkpoint(path) else load_pipeline(path)
    add_adapters(pipeline, path, lora_scales(arguments))
    if arguments.compile:
        compile_blocks([pipeline.unet], say, training=False)
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
    add = parser.add_argument
    add_evaluation_flags(add)
    add_lora_flags(add)
    add_input_flags(add)
    add_sampling_flags(
        add, seed="seed of the first clip's noise",
        context_frames="frames made together (default: as trained); of --predictions, for seam_ratio",
    )  # fmt: skip
    add_judges_flags(add)
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed flags. Raises ConfigError."""
    arguments = build_parser().parse_args(argv)
    forms = [name for name in ("model_path", "predictions", "compare") if getattr(arguments, name)]
    if len(forms) != 1:
        given = " and ".join(f"--{name}" for name in forms) or "none of them"
        raise ConfigError(f"give one of --model_path, --predictions and --compare, not {given}")
    if not arguments.compare and not arguments.data_dir:
        raise ConfigError(f"--{forms[0]} needs --data_dir, the folder with the true videos")
    if lora_scales(arguments) and not arguments.model_path:
        raise ConfigError("--lora: there is no --model_path whose model it changes")
    for first, second in (FILE_FLAGS["lpips"], FILE_FLAGS["face"]):
        if (getattr(arguments, first) is None) != (getattr(arguments, second) is None):
            raise ConfigError(f"--{first} and --{second} go together")
    check_sampling_flags(arguments)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
