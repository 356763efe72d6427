"""Serve a page to try a trained model: an image of a person, and a driving video or a song.

`python app.py --model_path OUTPUT_DIR/final`, then open the address that it prints. Exit code 2: wrong input,
and one line that says what.
"""

import system.waiting  # before torch is loaded

import argparse
import sys
import tempfile
from pathlib import Path

import yaml

from page.examples import Example, find_examples
from page.models import look_at_models
from page.server import LOOPBACK, check_address, check_gradio, keep_files_in, serve
from page.visits import Visits
from page.work import Work
from pipelines.flags import add_lora_flags, lora_scales
from pipelines.loading import add_adapters, choose_device, load_pipeline
from sample_guidance import parse_arguments as parse_sampling_arguments
from sampling.job import sample_video
from system.command_line import Parser, number, run_main
from system.errors import UserError
from system.user_code import import_user_modules


def main(argv: list[str] | None = None) -> int:
    """Return the exit code: 0 done, 2 wrong input, 130 stopped by Ctrl-C."""
    return run_main("app.py", lambda: run(parse_arguments(argv)))


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until it is stopped."""
    # Check what is cheap to check before a model is loaded.
    check_gradio()
    check_address(arguments.host, arguments.port)
    device = choose_device(arguments.device, arguments.mixed_precision)

    # Models and examples.
    import_user_modules(arguments.guidance_modules)
    pipeline = load_pipeline(arguments.model_path)
    add_adapters(pipeline, arguments.model_path, lora_scales(arguments))
    pipeline.to(device)
    music_to_pose_path = arguments.music_to_pose_path or beside(arguments.model_path)
    names = ("device", "mixed_precision", "enable_xformers_memory_efficient_attention")
    flags = {name: getattr(arguments, name) for name in names}
    estimator = {name: getattr(arguments, name) for name in ("pose_estimator", "dwpose_dir")}
    served = look_at_models(Path(arguments.model_path), pipeline, music_to_pose_path, flags, estimator)
    examples = ready_examples(arguments, served.guidance_types)

    def sample(flags: list[str], on_progress):
        return sample_video(parse_sampling_arguments(flags), pipeline=pipeline, on_progress=on_progress)

    # Serve.
    with tempfile.TemporaryDirectory(prefix="page_", ignore_cleanup_errors=True) as folder:
        keep_files_in(folder)
        from page.events import build_page  # imports Gradio
        from page.layout import Parts, look

        visits = Visits(Path(folder))
        parts = Parts(served, examples, int(2**20 * arguments.max_upload_mb), device.type != "cpu")
        blocks = build_page(parts, Work(sample, served, visits))
        try:
            serve(blocks, (arguments.host, arguments.port), parts.max_bytes, look(parts))
        finally:
            visits.end()
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of this script's flags."""
    parser = Parser(prog="app.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    # fmt: off
    add("--model_path", required=True, help="a trained model: OUTPUT_DIR/final")
    add_lora_flags(add)
    add("--music_to_pose_path", type=Path, help="a model of train_music_to_pose.py, to dance to songs "
        "(default: OUTPUT_DIR/music_to_pose/final where there is one)")
    add("--example_data_dir", type=Path, help="data folder whose first samples are ready examples "
        "(default: the model's validation data, on this machine alone)")
    add("--host", default=LOOPBACK, help="address to serve at; 0.0.0.0: for all who reach this machine, "
        f"without a password (default: {LOOPBACK}, this machine alone)")
    add("--port", type=number(int, 1), default=7860, help="port to serve at (default: 7860)")
    add("--max_upload_mb", type=number(float, 0, above=True), default=200.0,
        help="size of an upload at most, in megabytes (default: 200)")
    add("--pose_estimator", metavar="NAME",
        help="finds the poses of driving videos (default: that of the training data)")
    add("--dwpose_dir", metavar="DIR", help="folder with DWPose's models, for --pose_estimator dwpose")
    add("--guidance_modules", nargs="+", default=[], help="your modules that register guidance encoders")
    add("--device", help="cuda, cuda:1, cpu, ... (default: a GPU where there is one)")
    add("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="autocast (default: no)")
    add("--enable_xformers_memory_efficient_attention", action="store_true",
        help="attention by xformers instead of PyTorch")
    # fmt: on
    return parser


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the parsed flags. Raises ConfigError."""
    return build_parser().parse_args(argv)


def beside(model_path: str) -> Path | None:
    """Return the model of dances that the demo trains beside its model, where there is one."""
    path = Path(model_path).absolute().parent / "music_to_pose" / "final"
    return path if path.is_dir() else None


def ready_examples(arguments: argparse.Namespace, guidance_types: tuple[str, ...]) -> list[Example]:
    """Return the examples of --example_data_dir, else of the data that the model was validated on.

    The latter on this machine alone: nobody has agreed to more. Raises DataError for --example_data_dir.
    """
    if arguments.example_data_dir is not None:
        return find_examples(arguments.example_data_dir, guidance_types)
    config_path = Path(arguments.model_path).absolute().parent / "config.yaml"
    if arguments.host != LOOPBACK or not config_path.is_file():
        return []
    try:
        data_dir = yaml.safe_load(config_path.read_text(encoding="utf-8"))["validation_data_dir"]
        return find_examples(Path(data_dir), guidance_types)
    except (OSError, yaml.YAMLError, KeyError, TypeError, UserError):
        return []  # without examples the page works, too


if __name__ == "__main__":
    sys.exit(main())
