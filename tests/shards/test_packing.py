"""A data folder to shards and back; training from them gives the bits that the folder gives."""

import filecmp

import torch

import pack_guidance
from datasets import GuidanceDataset
from shards.clips import ShardClips

def test_shards_give_the_clips_of_the_folder(tiny_data, tiny_shards):
    keywords = {"resolution": 64, "sequence_length": 4, "seed": 5}
    folder = GuidanceDataset(tiny_data, ["music", "pose"], [35, 134], **keywords)
    shards = ShardClips(tiny_shards, ["music", "pose"], [35, 134], **keywords)
    assert list(shards.sample_ids) == folder.sample_ids
    for index in range(len(folder)):
        assert_same(folder[index], shards[index])
    assert_same(folder.feature_statistics(), shards.feature_statistics())


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, tuple):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    else:
        assert one == other


def test_unpacked_are_the_same_bytes(tiny_data, tiny_shards, tmp_path):
    out = tmp_path / "data"
    assert pack_guidance.main(["--data_dir", str(tiny_shards), "--unpack", "--output_dir", str(out)]) == 0
    files = {path.relative_to(tiny_data) for path in tiny_data.rglob("*") if path.is_file()}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == files
    assert filecmp.cmpfiles(tiny_data, out, map(str, files), shallow=False)[1:] == ([], [])
