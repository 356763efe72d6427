"""Training from shards: the bits that the folder gives, for any number of workers, resumed anywhere."""

import shutil

import pytest
import torch

from datasets import collate_clips
from shards.clips import ShardClips, ShardSettings
from tests.training.runs import assert_same_bits, final_weights, run, scalars
from training.batches import SampleStream, endless_batches

TYPES = (["music", "pose"], [35, 134])


def test_a_run_from_shards_has_the_bits_of_one_from_the_folder(flags, tiny_shards, tmp_path, capsys):
    logs = tmp_path / "logs_2"
    others = ["--train_data_dir", tiny_shards, "--output_dir", tmp_path / "two", "--logging_dir", logs]
    assert run(flags) == 0
    assert run(flags, *others) == 0
    assert_same_bits(final_weights(tmp_path / "out"), final_weights(tmp_path / "two"))
    assert scalars(tmp_path / "logs", "train_loss") == scalars(logs, "train_loss")
    assert "3 samples in 1 shard" in capsys.readouterr().err


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_workers_give_the_same_clips_through_a_cache(tiny_shards, tmp_path, num_workers):
    settings = ShardSettings(cache_dir=tmp_path / "cache")
    keywords = {"resolution": 64, "sequence_length": 4, "seed": 5}
    clips = ShardClips(tiny_shards, *TYPES, shards=settings, **keywords)
    stream = SampleStream(
        range(3), batch_size=2, seed=5, start_position=4, shard_numbers=clips.shard_numbers
    )  # fmt: skip
    batches = endless_batches(clips, stream, collate_clips, num_workers=num_workers)
    batches = clips.followed(batches, stream.order)
    found = [next(batches) for _ in range(3)]
    batches.close()
    plain = ShardClips(tiny_shards, *TYPES, **keywords)
    for batch, keys in zip(found, stream, strict=False):
        assert batch["position"] == [position for position, *_ in keys]
        for place, (_, epoch, index) in enumerate(keys):
            plain.set_epoch(epoch)
            assert torch.equal(batch["frames"][place], plain[index]["frames"])


def test_settings_that_the_check_was_not_made_for_are_named(flags, tiny_shards, capsys):
    assert run(flags, "--train_data_dir", tiny_shards, "--guidance_input_channels", 35, 18) == 2
    assert (
        "pose has 134 channels, not 18; set pose's --guidance_input_channels to 134"
        in capsys.readouterr().err
    )
    assert run(flags, "--train_data_dir", tiny_shards, "--music_feature_fps", 10) == 2
    assert "was checked with --music_feature_fps none, now it is 10.0" in capsys.readouterr().err
    assert run(flags, "--train_data_dir", tiny_shards, "--sequence_length", 13) == 2
    assert "sample 'dance_001' has 12 frames, a clip needs 13 (and 2 more)" in capsys.readouterr().err


def test_what_stands_in_the_way_of_a_start_is_one_line(flags, tiny_shards, tmp_path, capsys):
    (tmp_path / "a_file").touch()
    lost = shutil.copytree(tiny_shards, tmp_path / "lost")
    (lost / "index.sqlite").unlink()
    for more, said in (
        ((tiny_shards, "--shard_cache_dir", tmp_path / "a_file"), "(Not a directory): give another --shard"),
        ((lost,), "lost/index.sqlite: no such index of shards; pack the data again"),
        ((tiny_shards, "--aspect_buckets"), "--aspect_buckets: an index of shards has not the sizes"),
        (("s3://",), "s3://: names no bucket and folder: give an address as s3://BUCKET/SHARDS"),
    ):
        assert run(flags, "--train_data_dir", *more) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error
