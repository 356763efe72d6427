"""One truth about settings: flags beat YAML beats accelerate's configuration beats defaults.

That nothing of accelerate's is left out: test_accelerates_lists.py.
"""

import dataclasses
import os

import pytest
from accelerate.utils import DynamoBackend

from system.errors import ConfigError
from tests.training import toy_trainer
from training.checkpoints import resuming, saving
from training.execution import sharding
from training.execution.launch import make_accelerator
from training.settings import from_accelerate
from training.settings.parsing import build_parser, parse_arguments
from training.settings.sources import Sources

PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(PREFIXES)]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def start(environ: dict[str, str], argv=()) -> tuple[dict, list[str]]:
    """Return the settings that are no defaults, and the lines, as `open_session` would have them."""
    settings = parse_arguments(argv, environ)
    from_accelerate.refuse(environ)
    lines = [*from_accelerate.obeyed_lines(environ), *sharding.unheeded_lines(environ)]
    sharding.take_request(settings, dict(environ))
    defaults = dataclasses.asdict(parse_arguments([], {}))
    changed = {name: value for name, value in dataclasses.asdict(settings).items() if value != defaults[name]}
    return changed, settings.sources.lines(settings) + lines


def test_accelerate_does_nothing_that_the_settings_do_not_say(monkeypatch):
    for name, value in {
        "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_MODE": "max-autotune",
        "ACCELERATE_DYNAMO_USE_FULLGRAPH": "?", "ACCELERATE_DYNAMO_USE_DYNAMIC": "?",
        "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "?",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    accelerator = make_accelerator(parse_arguments([], {}))
    assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == ("no", 1)
    assert accelerator.state.dynamo_plugin.backend == DynamoBackend.NO


# -- Who beats whom


def test_flags_beat_yaml_beats_accelerate_beats_defaults(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("mixed_precision: 'no'\n")
    environ = {"ACCELERATE_MIXED_PRECISION": "fp16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    yaml_argv = ["--config", str(config)]

    def precision(argv, environ):
        return parse_arguments(argv, environ).mixed_precision

    assert precision([], {}) == "no" and precision([], environ) == "fp16"
    assert precision(yaml_argv, environ) == "no"
    assert precision([*yaml_argv, "--mixed_precision", "bf16"], environ) == "bf16"
    settings = parse_arguments(yaml_argv, environ)
    assert settings.gradient_accumulation_steps == 4
    assert settings.sources.lines(settings) == [
        f"settings: 1 from {config}, 1 from accelerate, the others are defaults",
        "taken from accelerate: gradient_accumulation_steps 4 (ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4)",
        f"not taken from accelerate: ACCELERATE_MIXED_PRECISION=fp16; {config} says mixed_precision no",
    ]


@pytest.mark.parametrize(
    ("flags", "environ"),
    [
        (["--mixed_precision", "no"], {"ACCELERATE_MIXED_PRECISION": "bf16"}),
        (["--mixed_precision", "no"], {"ACCELERATE_MIXED_PRECISION": "fp8"}),
        (["--gradient_accumulation_steps", "1"], {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}),
        (["--gradient_accumulation_steps", "1"], {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}),
        (["--no-compile"], {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}),
        (["--no-compile"], {"ACCELERATE_DYNAMO_BACKEND": "AOT_EAGER"}),
    ],
)
def test_a_flag_that_is_the_default_beats_accelerate_too(flags, environ):
    changed, lines = start(environ, flags)
    (said,) = (f"{name}={value}" for name, value in environ.items())
    assert changed == {} and lines[-1].startswith(f"not taken from accelerate: {said}; a flag says ")


def test_a_flag_beats_the_options_of_a_compiler_too():
    environ = {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_MODE": "max-autotune"}
    changed, lines = start(environ, ["--compile"])
    assert changed == {"compile": True}
    assert (
        lines[-1]
        == "not taken from accelerate: ACCELERATE_DYNAMO_MODE=max-autotune; a flag says compile True"
    )


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, "knows no, fp16, bf16; give --mixed_precision bf16"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "auto"}, "give --gradient_accumulation_steps"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "0"}, "a whole number, at least 1"),
        ({"ACCELERATE_DYNAMO_BACKEND": "EAGER"}, "BACKEND=EAGER: .* inductor only; give --compile or --no-"),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_MODE": "max-autotune"},
            "MODE=max-autotune: .* default only; give --compile or",
        ),
        (
            {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR", "ACCELERATE_DYNAMO_USE_DYNAMIC": "True"},
            "USE_DYNAMIC=True: .* give --compile or",
        ),
        (
            {"ACCELERATE_USE_SAGEMAKER": "true", from_accelerate.SAGEMAKER: "DATA_PARALLEL"},
            "SageMaker's DATA_PARALLEL",
        ),
        ({"ACCELERATE_TORCH_DEVICE": "cuda:1", "WORLD_SIZE": "2"}, "one device for 2 processes: unset it"),
        (
            {"ACCELERATE_TORCH_DEVICE": "gpu1"},
            "TORCH_DEVICE=gpu1: write cuda:1 or cpu, for example",
        ),
        ({"ACCELERATE_USE_CPU": "maybe"}, "ACCELERATE_USE_CPU=maybe: write true or false"),
        ({"ACCELERATE_DEBUG_MODE": ""}, "ACCELERATE_DEBUG_MODE=: write true or false, or unset it"),
        ({"ACCELERATE_DOWNCAST_BF16": "1"}, "for TPUs: unset ACCELERATE_DOWNCAST_BF16"),
    ],
)
def test_what_cannot_be_taken_is_refused_in_one_line_whose_fix_helps(environ, message):
    with pytest.raises(ConfigError, match=message) as raised:
        start(environ)
    text = str(raised.value)
    assert "\n" not in text
    if "; give " in text:  # the flag beats the variable, and there is such a flag
        flags = text.split("; give ")[1].split(",")[0].split(" or ")[0].split()
        flags += ["1"] if flags == ["--gradient_accumulation_steps"] else []
        assert build_parser().parse_args(flags)
        start(environ, flags)
    else:
        fixed = {name: "true" for name in environ if "write true" in text}
        start(fixed)


def test_accelerates_launcher_without_a_configuration_changes_nothing():
    environ = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "ACCELERATE_DYNAMO_BACKEND": "NO",
        "ACCELERATE_USE_CPU": "",
    }
    environ |= {"ACCELERATE_DYNAMO_MODE": "default", "ACCELERATE_USE_CPU": "False"}
    assert start(environ) == ({}, [])


# -- What a run says and keeps of it


def test_a_run_says_what_came_from_where_and_its_config_yaml_too(tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["--output_dir", str(out), "--logging_dir", str(tmp_path / "logs"), "--max_train_steps", "2"]
    settings = parse_arguments(argv, {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"})
    assert toy_trainer.train(settings) == 0
    first, second, third = capsys.readouterr().err.splitlines()[:3]
    assert first == "settings: 3 from flags, 1 from accelerate, the others are defaults"
    assert second.startswith("taken from accelerate: gradient_accumulation_steps 2 (ACCELERATE_GRADIENT")
    assert third == "processes: 1, this one on cpu"
    text = (out / "config.yaml").read_text()
    assert "# from flags: output_dir, logging_dir, max_train_steps\n" in text
    name = "gradient_accumulation_steps"
    assert f"# from accelerate: {name} (ACCELERATE_GRADIENT_ACCUMULATION_STEPS=2)\n" in text

    # From then on it is the run's own: another environment is a change, and config.yaml beats it.
    again = parse_arguments(["--config", str(out / "config.yaml")], {"ACCELERATE_MIXED_PRECISION": "bf16"})
    assert again == settings and again.sources.accelerate == {}
    state = saving.TrainerState(clips_per_step=2, settings=dataclasses.asdict(settings))
    (out / "checkpoint").mkdir()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(resuming, "read_state", lambda path: state)
        _, lines = resuming.start_state(out / "checkpoint", parse_arguments(argv, {}), 1)
    assert f"changed since the checkpoint: {name} was 2, now it is 1" in lines


def test_settings_made_by_hand_have_no_sources():
    assert Sources().lines(None) == Sources().comments() == []
