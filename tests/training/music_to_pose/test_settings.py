"""Settings of the trainer of dances: what is its own, what is the first trainer's, what is refused."""

import functools
import re
from types import SimpleNamespace

import pytest

from models.music_to_pose.music import MusicFeatures
from system.errors import ConfigError
from training.music_to_pose.data import DanceData, music_layout
from training.music_to_pose.settings import (
    MusicToPoseArguments,
    check_arguments,
    check_shares,
    memory_advice,
    read_groups,
    settings_without_effect,
)
from training.settings.fields import FLAGS, flags_of
from training.settings.parsing import parse_arguments

DYNAMO = {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
parse = functools.partial(parse_arguments, kind=MusicToPoseArguments, check=check_arguments)


def test_flags_that_mean_the_same_have_one_name_and_others_are_not_offered():
    own = flags_of(MusicToPoseArguments)
    assert set(own) - set(FLAGS) == {
        "hidden_size", "num_layers", "num_heads", "frame_rate", "music_groups", "beat_channel",
        "time_stretch", "group_dropout",
        "velocity_weight", "acceleration_weight", "bone_weight", "foot_weight",
    }  # fmt: skip
    assert not {"resolution", "compile", "validation_metrics", "gradient_checkpointing"} & set(own)
    assert parse([]).channels == {"music": 35, "pose": 134}
    with pytest.raises(ConfigError, match="unrecognized arguments: --compile"):
        parse(["--compile"])


def test_what_accelerate_asks_for_and_is_not_offered_is_said():
    arguments = parse(["--seed", "1"], DYNAMO)
    assert not arguments.compile
    [line] = arguments.sources.beaten
    assert line.endswith("ACCELERATE_DYNAMO_BACKEND=INDUCTOR; train_music_to_pose.py says compile False")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--guidance_types", "pose"], "--guidance_types pose: this trainer knows music and pose"),
        (["--guidance_input_channels", "35"], "--guidance_input_channels has 1"),
        (["--guidance_input_channels", "35", "17"], "pose has 17 key points; a dance needs those of Open"),
        (["--hidden_size", "100"], "must be a multiple of 2 x --num_heads, 16"),
        (["--sequence_length", "3"], "--sequence_length 3: must be at least 4"),
        (["--keep_best", "psnr"], "--keep_best psnr: this trainer knows val_loss only"),
        (["--beat_channel", "35"], "there are 35 music features, columns 0 to 34"),
        (["--music_groups", "all=0-35"], "there are 35 music features, columns 0 to 34"),
        (["--music_groups", "all=3-1"], "write NAME=COLUMNS, each name once"),
        (["--music_groups", "a=1", "a=2"], "write NAME=COLUMNS, each name once"),
        (["--group_dropout", "a=1"], "write NAME=SHARE, each name once, at least 0 and below 1"),
        (["--time_stretch", "1"], "--time_stretch 1.0: must be at least 0 and below 1"),
        (["--foot_weight", "-1"], "--foot_weight -1.0: must not be negative"),
        (["--check_data", "--dry_run"], "give one of them"),
    ],
)
def test_wrong_flags(argv, message):
    with pytest.raises(ConfigError) as raised:
        parse(argv)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_groups_and_beats_are_the_settings_or_the_recipes():
    assert read_groups(["a=0,3-5", "b=2"], 6) == {"a": [0, 3, 4, 5], "b": [2]}
    own = parse(["--music_groups", "a=0-3", "--beat_channel", "3"])
    assert music_layout(own, "aist35") == {"music_groups": {"a": [0, 1, 2, 3]}, "beat_channel": 3}
    of_recipe = music_layout(parse([]), "aist35")
    assert of_recipe["beat_channel"] == 34 and set(of_recipe["music_groups"]) == {
        "rhythm",
        "timbre",
        "harmony",
    }
    assert music_layout(parse([]), None) == {"music_groups": None, "beat_channel": None}


def test_shares_are_of_groups_that_there_are():
    beats_alone = MusicFeatures(35, {"timbre": [1, 2]}, beat_channel=34)
    check_shares({"rhythm": 0.2}, beats_alone.groups)  # the beats' phases make this group
    with pytest.raises(ConfigError, match="drums: the music's groups are timbre, rhythm; others are told by"):
        check_shares({"drums": 0.2}, beats_alone.groups)


@pytest.mark.parametrize(
    ("heard", "taken"),
    [
        (MusicFeatures(35), "one group and without beats: .*; --music_groups and --beat_channel can tell"),
        (MusicFeatures(35, {"a": [1]}), "without beats: .*; --beat_channel can tell"),
        (MusicFeatures(35, {"a": [1]}, 34), None),
    ],
)
def test_columns_of_unknown_meaning_are_said(heard, taken):
    dances = SimpleNamespace(music_features=heard, left_out=[])
    data = DanceData(dances, dances, [0], [0], "note", dances, "dance", 25.0, music_recipe="own.py:features")
    lines = data.notes()[1:]
    assert not lines if taken is None else re.search(f"are {taken} more, for example", *lines)


def test_what_does_nothing_is_said_and_what_saves_memory_is_advised():
    arguments = parse(["--ema_decay", "0.5"])
    assert settings_without_effect(arguments) == ["--ema_decay has no effect: --use_ema is off"]
    assert "--train_batch_size 1 --gradient_accumulation_steps 16" in memory_advice(arguments, has_gpu=False)
    small = parse(["--train_batch_size", "1"])
    advice = "What still helps: a smaller --sequence_length than 100; a smaller --hidden_size than 320"
    assert memory_advice(small, has_gpu=False) == advice
