"""What --region_weights means, and which data cannot give it."""

import re

import pytest

from system.errors import ConfigError
from training.settings.fields import TrainingArguments
from training.settings.regions import check_regions, region_weights_of

MUSIC = {"music": (35,)}


def test_weights_are_read():
    assert region_weights_of(TrainingArguments()) == {}
    given = TrainingArguments(region_weights=["hands=3", "face=0.5"])
    assert region_weights_of(given) == {"hands": 3.0, "face": 0.5}


@pytest.mark.parametrize(
    ("weights", "shapes", "message"),
    [
        ({"hands": 3.0}, MUSIC, "hands=3: no guidance type has .* show the hands: add pose .* of 134 points"),
        ({"face": 1.5}, MUSIC, "face=1.5: no guidance type .* add pose .* of 92 or 134 points"),
        (
            {"hands": 3.0},
            {"pose": (18, 3)},
            "18 key points of pose do not show the hands, 134 do: detect them",
        ),
        (
            {"face": 2.0, "hands": 3.0},
            MUSIC | {"pose": (92, 3)},
            "hands=3: 92 key points of pose do not show",
        ),
        ({"face": 2.0}, {"pose": (24, 3)}, "the face, 92 or 134 do: .* or leave face out"),
        ({"face": 2.0}, {"pose": (133, 3)}, "133 key points of pose do not show the face"),
    ],
)
def test_data_that_do_not_show_the_region_are_refused(weights, shapes, message):
    with pytest.raises(ConfigError) as raised:
        check_regions(weights, shapes)
    assert re.search(message, str(raised.value)), str(raised.value)
    assert "\n" not in str(raised.value)


def test_data_that_show_it_are_not():
    check_regions({"hands": 3.0, "face": 2.0}, MUSIC | {"pose": (134, 3)})
    check_regions({"face": 2.0}, {"own_points": (92, 3)})  # a type of the user's, of pose files
    check_regions({}, MUSIC)
