"""Which clips are kept for validation, and what is recorded of music and poses."""

import json
import shutil
from types import SimpleNamespace

import pytest

from training.data import DataFolders, open_data, split_for_validation


def test_validation_split():
    few, held, note = split_for_validation(["a", "b"])
    assert few == held == [0, 1] and "validation uses training clips" in note
    names = [f"dance_{number:03d}" for number in range(100)]
    kept, held, note = split_for_validation(names)
    assert len(held) == 5 and sorted(kept + held) == list(range(100))
    assert all(names[index] in note for index in held)
    assert split_for_validation(names)[1] == held
    assert len(split_for_validation([str(number) for number in range(1000)])[1]) == 8
    _, more_held, _ = split_for_validation([*names, "dance_100"])
    assert {names[index] for index in held} & {[*names, "dance_100"][index] for index in more_held}


@pytest.mark.parametrize("recipes, recorded", [("", None), ("AAA", "A"), ("A", "A"), ("ABA", None)])
def test_the_recipes_are_recorded_where_the_samples_agree(tiny_data, tmp_path, recipes, recorded):
    root = shutil.copytree(tiny_data, tmp_path / "data")
    (root / "metadata").mkdir()
    for number, name in enumerate(recipes, 1):
        facts = {"music_features": {"name": name, "channels": 35}, "poses": {"name": name, "key_points": 134}}
        (root / "metadata" / f"dance_{number:03d}.json").write_text(json.dumps(facts))
    settings = SimpleNamespace(
        train_data_dir=root, validation_data_dir=None, guidance_types=["music", "pose"],
        guidance_input_channels=[35, 134], skip_invalid=False,
    )  # fmt: skip
    data = open_data(DataFolders(settings, tmp_path, {"resolution": 64, "sequence_length": 4}), None)
    assert data.music_recipe == data.pose_recipe == recorded
    assert data.frame_rate == pytest.approx(8)
