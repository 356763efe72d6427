"""Flags beat YAML beats defaults; whatever is wrong is one message that helps."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from models.recomputation import CHECKPOINTING_LEVELS
from system.errors import ConfigError
from training.music_to_pose import settings as dances
from training.music_to_pose.settings import MusicToPoseArguments
from training.settings.checks import memory_advice, settings_without_effect
from training.settings.parsing import (
    ALIASES,
    FLAGS,
    TrainingArguments,
    build_parser,
    default_of,
    flags_of,
    parse_arguments,
)

REPOSITORY = Path(__file__).parents[3]
DANCE_CONFIGS = sorted((REPOSITORY / "configs").glob("*music_to_pose.yaml"))
CONFIGS = sorted({*(REPOSITORY / "configs").glob("*.yaml")} - {*DANCE_CONFIGS})


def write_yaml(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return ["--config", str(path)]


def test_defaults_are_the_documented_ones():
    arguments = parse_arguments([])
    assert arguments == TrainingArguments()
    documented = {
        "output_dir": "./champ_guidance_output",
        "resolution": [512],
        "train_batch_size": 1,
        "num_train_epochs": 100,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 500,
        "lr_num_cycles": 1,
        "lr_power": 1.0,
        "guidance_types": ["music", "pose"],
        "guidance_input_channels": [1, 134],
        "guidance_embedding_channels": 1280,
        "sequence_length": 16,
        "logging_dir": "logs",
        "mixed_precision": "no",
        "checkpointing_steps": 500,
        "validation_steps": 100,
        "training_stage": "joint",
        "pretrained_lr_scale": 0.1,
        "max_grad_norm": 1.0,
        "noise_offset": 0.05,
        "reference_dropout": 0.1,
        "max_train_steps": None,
    }
    assert {name: getattr(arguments, name) for name in documented} == documented


def test_flags_beat_yaml_beats_defaults(tmp_path):
    text = "seed: 1\nlearning_rate: 1e-3\nuse_ema: true\nresolution: 256\nsave_steps: 7\n"
    text += "guidance_types: [pose, depth]\nguidance_input_channels: [134, 3]\n"
    config = write_yaml(tmp_path, text)
    arguments = parse_arguments([*config, "--seed", "2", "--no-use_ema", "--save_steps", "9"])
    assert (arguments.seed, arguments.learning_rate, arguments.use_ema) == (2, 1e-3, False)
    assert arguments.guidance_types == ["pose", "depth"]
    assert arguments.resolution == [256]
    assert arguments.checkpointing_steps == 9
    assert parse_arguments(config).checkpointing_steps == 7


def test_gradient_checkpointing_is_a_level_and_a_switch(tmp_path):
    def level(*argv):
        return parse_arguments(list(argv)).gradient_checkpointing

    assert level() == "selective"
    assert level("--gradient_checkpointing") == level("--gradient_checkpointing", "--seed", "1") == "all"
    assert level("--no-gradient_checkpointing") == "none"
    assert level("--gradient_checkpointing", "none") == "none"
    for text, expected in (("true", "all"), ("false", "none"), ("none", "none"), ("selective", "selective")):
        config = write_yaml(tmp_path, f"gradient_checkpointing: {text}\n")
        assert level(*config) == expected
        assert level(*config, "--gradient_checkpointing", "all") == "all"
    assert FLAGS["gradient_checkpointing"].metadata["choices"] == CHECKPOINTING_LEVELS


def test_a_windows_path_in_yaml(tmp_path):
    for text in (r"D:\new\data", r"'D:\new\data'", r'"D:\\new\\data"'):
        arguments = parse_arguments(write_yaml(tmp_path, f"train_data_dir: {text}\n"))
        assert arguments.train_data_dir == r"D:\new\data"


def test_no_needs_no_quotes_in_yaml(tmp_path):
    assert parse_arguments(write_yaml(tmp_path, "mixed_precision: no\n")).mixed_precision == "no"


def test_a_config_of_another_encoding_is_named(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("train_data_dir: 안무\n".encode("cp949"))
    with pytest.raises(ConfigError, match="run.yaml: is not text in UTF-8: save it as UTF-8"):
        parse_arguments(["--config", str(path)])


def test_aliases():
    given = ["--save_steps", "5", "--dataloader_num_workers", "2", "--use_xformers"]
    arguments = parse_arguments(given)
    assert arguments.checkpointing_steps == 5
    assert arguments.num_workers == 2
    assert arguments.enable_xformers_memory_efficient_attention
    assert set(ALIASES) == {"save_steps", "dataloader_num_workers", "use_xformers", "aspect_ratio_buckets"}


def test_optional_values_can_be_taken_back(tmp_path):
    config = write_yaml(tmp_path, "snr_gamma: 5\nmax_train_steps: 3\n")
    arguments = parse_arguments([*config, "--snr_gamma", "none", "--max_train_steps", "none"])
    assert arguments.snr_gamma is None and arguments.max_train_steps is None


def test_another_data_folder_leaves_the_yamls_validation_folder_behind(tmp_path, capsys):
    config = write_yaml(tmp_path, "train_data_dir: demo/train\nvalidation_data_dir: demo/validation\n")
    assert parse_arguments(config).validation_data_dir == "demo/validation"
    assert parse_arguments([*config, "--train_data_dir", "mine"]).validation_data_dir is None
    assert "validation_data_dir" in capsys.readouterr().out
    both = [*config, "--train_data_dir", "mine", "--validation_data_dir", "held"]
    assert parse_arguments(both).validation_data_dir == "held"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learning_rat", "1"], r"--learning_rat 1; did you mean --learning_rate\?"),
        (["--seed", "x"], "--seed: invalid int value: 'x'"),
        (["--training_stage", "all"], "--training_stage: invalid choice.*joint.*image.*motion"),
        (
            ["--guidance_types", "pose"],
            "has 1 .pose. but --guidance_input_channels has 2 .1 134.*channels 134$",
        ),
        (["--guidance_types", "pose", "pose"], "named twice"),
        (["--guidance_types"], "at least one type"),
        (["--guidance_dropout", "0.1", "0.1", "0.1"], "--guidance_dropout .*one per type .music pose"),
        (["--guidance_dropout", "1.0"], "--guidance_dropout 1.0: must be at least 0 and below 1"),
        (["--train_batch_size", "0"], "--train_batch_size 0: must be at least 1"),
        (["--learning_rate", "0"], "--learning_rate 0.0: must be above 0"),
        (["--seed", "-1"], "--seed -1: must not be negative"),
        (["--sequence_length", "33"], "--sequence_length 33: the motion modules know 32 frames"),
        (["--resolution", "500"], "--resolution 500.*multiples of 8"),
        (["--resolution", "512", "512", "512"], "--resolution"),
        (["--training_stage", "motion", "--train_data_format", "image"], "clips"),
        (["--training_stage", "motion"], "nothing but motion modules.*--champ_checkpoint_dir"),
        (["--check_data", "--dry_run"], "give one of them"),
        (["--cache_latents", "--random_flip"], "one encoding of each video.*leave one of them out"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["--region_weights", "hand=3"], r"hand=3: expected hands=WEIGHT, face=WEIGHT; did you mean hands\?"),
        (["--region_weights", "3"], "--region_weights 3: expected hands=WEIGHT, face=WEIGHT$"),
        (["--region_weights", "hands=2", "hands=3"], "--region_weights: hands is given twice"),
        (["--region_weights", "hands"], "--region_weights hands: the weight must be a number, at least 0"),
        (["--region_weights", "hands=-1"], "the weight must be a number"),
        (["--region_weights", "face=nan"], "the weight must be a number"),
        (["--region_weights", "face=inf"], "the weight must be a number"),
    ],
)
def test_wrong_flags(argv, message):
    with pytest.raises(ConfigError) as raised:
        parse_arguments(argv)
    assert re.search(message, str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rte: 1", "unknown key 'learning_rte'; did you mean learning_rate?"),
        ("seed: many", "seed: 'many'"),
        ("seed: [1, 2]", "seed"),
        ("training_stage: both", "--training_stage both: choose one of joint, image, motion"),
        ("save_steps: 1\ncheckpointing_steps: 2", "given twice"),
        ("- seed", "expected lines of NAME: VALUE"),
        ("seed: 1: 2", "not a YAML file"),
        (r'train_data_dir: "D:\data"', "unknown escape character"),
        (r'train_data_dir: "D:\Users\me"', "write Windows paths without quotes"),
        (r'train_data_dir: "D:\new"', r"train_data_dir is 'D:\new': in double quotes YAML reads a backslash"),
    ],
)
def test_wrong_yaml(tmp_path, text, message):
    with pytest.raises(ConfigError) as raised:
        parse_arguments(write_yaml(tmp_path, text))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_parse(path):
    arguments = parse_arguments(["--config", str(path)])
    assert settings_without_effect(arguments) == []


@pytest.mark.parametrize("path", DANCE_CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_of_the_trainer_of_dances_parse(path):
    arguments = parse_arguments(["--config", str(path)], {}, MusicToPoseArguments, dances.check_arguments)
    assert dances.settings_without_effect(arguments) == []
    with pytest.raises(ConfigError, match="unknown key"):
        parse_arguments(["--config", str(path)])


@pytest.mark.parametrize(("kind", "default"), [(TrainingArguments, 0.0001), (MusicToPoseArguments, 0.0002)])
def test_every_flag_has_help_with_its_default(kind, default):
    text = " ".join(build_parser(kind).format_help().split())
    for name, entry in flags_of(kind).items():
        assert f"--{name}" in text
        assert entry.metadata["help"]
    assert f"(default: {default})" in text and kind.description in text


@pytest.mark.parametrize("kind", [TrainingArguments, MusicToPoseArguments])
def test_every_flag_is_read_by_the_training_code(kind):
    """No flag is a no-op: some code beside the checks reads it. What it does has its own tests."""
    sources = [REPOSITORY / kind.program, *(REPOSITORY / "training").rglob("*.py")]
    groups, read = ("self", "arguments", "settings", "execution"), set()  # self: of TrainingArguments
    for source in sources:
        if source.name in ("checks.py", "dry_run.py", "settings.py"):
            continue
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1] in groups:
                read.add(node.attr)
    assert set(flags_of(kind)) - read == set()


def test_settings_without_effect_are_named():
    arguments = TrainingArguments(training_stage="image", sequence_length=8, ema_decay=0.9, lr_power=2.0)
    lines = settings_without_effect(arguments)
    assert [line.split()[0] for line in lines] == ["--sequence_length", "--lr_power", "--ema_decay"]
    arguments = TrainingArguments(
        train_data_format="image", frame_stride=2, music_feature_fps=30.0, guidance_types=["pose"]
    )
    lines = settings_without_effect(arguments)
    assert [line.split()[0] for line in lines] == ["--frame_stride", "--music_feature_fps"]
    lines = settings_without_effect(TrainingArguments(cache_dir="cache"))
    assert lines == ["--cache_dir has no effect: --cache_latents is off"]
    assert settings_without_effect(TrainingArguments()) == []
    one_file = {"pretrained_model_name_or_path": __file__, "revision": "main", "variant": "fp16"}
    assert settings_without_effect(TrainingArguments(**one_file)) == [
        "--revision has no effect: the pretrained model is on this machine",
        "--variant has no effect: the pretrained model is one file",
    ]
    assert dataclasses.asdict(TrainingArguments())["guidance_dropout"] == default_of("guidance_dropout")


def test_what_is_in_use_is_not_advised():
    plain = memory_advice(TrainingArguments(train_batch_size=4, use_ema=True), has_gpu=True)
    for flag in ("--gradient_checkpointing all", "--mixed_precision", "--use_8bit_adam", "no --use_ema"):
        assert flag in plain
    assert "--train_batch_size 1 --gradient_accumulation_steps 4 (the same step)" in plain
    saving = TrainingArguments(
        gradient_checkpointing="all", mixed_precision="bf16", use_8bit_adam=True, training_stage="image"
    )
    advice = memory_advice(saving, has_gpu=True)
    assert advice == "What still helps: a smaller --resolution than 512"
