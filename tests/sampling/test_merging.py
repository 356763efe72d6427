"""--merge_lora: a whole model of a base and its adapters, and what it refuses to write over."""

import re

import pytest
import torch

import sample_guidance
from datasets import VideoReader
from models import ChampModel
from models.lora import load_loras, merge_lora

from ..pipelines.tiny_pipeline import write_adapter


@pytest.fixture(scope="module")
def adapter(final, tmp_path_factory):
    folder = write_adapter(final, tmp_path_factory.mktemp("dancer") / "final", "motion", "guidance_encoders")
    (folder / "README.md").write_text("licence of the dancer")
    return folder


@pytest.fixture
def merging(final, adapter, tmp_path):
    """The flags of a merge, as a dict."""
    return {"model_path": final, "lora": [adapter], "lora_scale": 0.5, "merge_lora": tmp_path / "merged"}


def test_a_model_of_its_own(merging, flags, run, final, adapter, tmp_path, capsys):
    assert run(merging) == 0
    assert f"wrote {merging['merge_lora']}" in capsys.readouterr().out
    expected = ChampModel.from_pretrained(final)
    load_loras(expected, [adapter], [0.5])
    merge_lora(expected)
    found, expected = ChampModel.from_pretrained(merging["merge_lora"]).state_dict(), expected.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    card = (merging["merge_lora"] / "README.md").read_text()
    assert re.search(r"\| base \| `model\d+/final` \|\n\| adapter \| `dancer\d+/final`, scale 0.5 \|", card)
    assert "`README_adapter_1.md`" in card and str(tmp_path.parent) not in card
    assert (merging["merge_lora"] / "README_adapter_1.md").read_text() == "licence of the dancer"
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    # It is sampled as its base.
    assert run(flags | {"model_path": merging["merge_lora"]}) == 0 and len(VideoReader(flags["output"])) == 8


def test_only_a_model_is_replaced_and_only_when_asked(merging, run, final, adapter, tmp_path, capsys):
    folder = merging["merge_lora"]
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    for changes, message in (
        ({}, "merged exists; add --overwrite, or choose another folder"),
        ({"overwrite": None}, "merged is no model, and stays as it is; choose another folder"),
        ({"overwrite": None, "merge_lora": final}, "final, which is read, lies there; choose another folder"),
        ({"overwrite": None, "merge_lora": adapter.parent}, "which is read, lies there"),
    ):
        assert run(merging | changes) == 2
        assert message in capsys.readouterr().err
    assert (folder / "thesis.txt").read_text() == "mine"
    (folder / "model_index.json").write_text("{}")
    assert run(merging | {"overwrite": None}) == 0
    assert not (folder / "thesis.txt").exists() and (folder / "unet" / "config.json").is_file()


def test_merging_is_not_sampling(merging, run, words, capsys):
    changes = {"reference_image": "person.jpg", "seed": 1}
    assert run(merging | changes) == 2
    message = "samples nothing: leave out --reference_image, --seed; then sample with --model_path"
    assert message in capsys.readouterr().err
    assert run(merging | {"lora": False, "lora_scale": False}) == 2
    assert "--merge_lora: there is no --lora to merge in" in capsys.readouterr().err
    arguments = sample_guidance.parse_arguments(words(merging | {"guidance_modules": "my_guidance.py"}))
    assert arguments.guidance_modules == ["my_guidance.py"]
