"""A latent cache as shards: training from them has the bits of training from the cache."""

import filecmp

import pytest
import torch

import pack_guidance
from caching.cache_folder import opened
from caching.tensor_file import PackedTensors
from tests.shards.conftest import TYPES
from tests.training.runs import assert_same_bits, final_weights, run, scalars


def pack(data_dir, cache_dir, output_dir) -> int:
    flags = ["--data_dir", data_dir, "--from_cache", cache_dir, "--output_dir", output_dir]
    return pack_guidance.main([*map(str, flags), "--num_workers", "0"])


def test_training_from_them_has_the_bits_of_the_cache(flags, tiny_data, tmp_path, capsys):
    cache, shards, whole = tmp_path / "cache", tmp_path / "shards", tmp_path / "whole"
    flags = [*flags, "--cache_latents", "--validation_data_dir", str(tiny_data), "--max_train_steps", "1"]
    flags += ["--train_batch_size", "2", "--frame_stride", "2"]
    assert run(flags, "--cache_dir", cache) == 0
    assert pack(tiny_data, cache, shards) == 0
    assert "3 samples in 1 shard" in capsys.readouterr().out
    assert pack(tiny_data, cache, shards) == 0
    assert "up to date, 3 samples in 1 shard" in capsys.readouterr().out

    logs = tmp_path / "logs_2"
    more = ["--train_data_dir", shards, "--output_dir", tmp_path / "two", "--logging_dir", logs]
    assert run(flags, *more) == 0
    assert_same_bits(final_weights(tmp_path / "out"), final_weights(tmp_path / "two"))
    for name in ("train_loss", "val_loss"):
        assert scalars(tmp_path / "logs", name) == scalars(logs, name)
    assert run(flags, *more, "--fit", "pad") == 2
    said = "its latents were encoded with other fit than this run's: give the same, or train from the data"
    assert said in capsys.readouterr().err

    to_data = ["--data_dir", str(tiny_data), "--output_dir", str(shards), *TYPES]
    assert pack_guidance.main(to_data) == 2  # latents are expensive, and the names are those of the data
    assert "has shards of other data" in capsys.readouterr().err

    assert pack_guidance.main(["--data_dir", str(shards), "--unpack", "--output_dir", str(whole)]) == 0
    (folder,) = [path for path in cache.iterdir() if path.is_dir()]
    names = [path.name for path in folder.iterdir()]
    assert filecmp.cmpfiles(folder, whole / folder.name, names, shallow=False)[0] == names


def test_what_cannot_be_packed_is_named(tiny_data, tmp_path, capsys):
    assert pack(tiny_data, tmp_path, tmp_path / "shards") == 2
    assert "no latent cache is there; train with --cache_latents, which builds it" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [slice(0, 3), slice(2, 7, 2), slice(4, 5), slice(0, 7)])
def test_tensors_are_read_as_safetensors_reads_them(tmp_path, rows):
    from safetensors.torch import save_file

    values = torch.randn(7, 2, 3)
    tensors = {
        "b": values,
        "a": values.half(),
        "c": values.bfloat16(),
        "d": values.byte(),
        "e": values.double(),
    }
    save_file(tensors, tmp_path / "one", {"key": "value"})
    with opened(tmp_path / "one") as expected, (tmp_path / "one").open("rb") as file:
        found = PackedTensors(file)
        assert list(found.keys()) == list(expected.keys())
        for name in tensors:
            assert torch.equal(found.get_tensor(name), expected.get_tensor(name))
            assert torch.equal(found.get_slice(name)[rows], expected.get_slice(name)[rows])
            assert found.get_slice(name).get_shape() == expected.get_slice(name).get_shape()
