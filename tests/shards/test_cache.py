"""The cache of whole shards: damaged copies come again, and it holds no more than it may."""

import time

import numpy as np
import pytest

from shards.cache import ShardCache
from shards.fetching import Store
from shards.index import ShardIndex
from shards.read_ahead import ReadAhead
from system.errors import ConfigError


@pytest.fixture(scope="module")
def many_shards(write_data, pack, tmp_path_factory):
    """Four shards of a sample each, of a megabyte and more, read as from a store."""
    root = write_data(tmp_path_factory.mktemp("many"), num_videos=4)
    for path in (root / "reference_images").iterdir():
        with path.open("ab") as file:
            file.write(bytes(2**20))  # behind the picture's end
    return pack(root, tmp_path_factory.mktemp("many_shards") / "shards", "--shard_mb", 1)


@pytest.fixture
def make(many_shards, tmp_path):
    return lambda max_bytes=2**30: ShardCache(Store(f"file://{many_shards}"), tmp_path / "cache", max_bytes)


def test_a_copy_that_is_cut_short_or_changed_comes_again(make, many_shards):
    cache = make()
    shard = ShardIndex(cache.index_path()).shards[1]
    whole = (many_shards / shard.name).read_bytes()
    path = cache.path_of(shard)
    for damaged in (whole[:-1000], whole[:4000] + b"?" + whole[4001:]):
        path.write_bytes(damaged)
        assert cache.path_of(shard).read_bytes() == whole
        path.write_bytes(damaged)
        assert make().path_of(shard).read_bytes() == whole


def test_it_keeps_what_was_used_last(make):
    cache = make()
    shards = ShardIndex(cache.index_path()).shards
    assert len(shards) == 4
    cache = make(3 * max(shard.size for shard in shards) + 10)
    for shard in shards:
        cache.path_of(shard)
    assert sorted(path.name for path in cache.folder.glob("*.tar")) == [shard.name for shard in shards[1:]]
    with pytest.raises(ConfigError, match="--shard_cache_gb: 4 shards at a time are .*: give 1 or more"):
        make(100).check_room(shards)


def test_shards_are_fetched_before_their_turn(make):
    cache = make()
    shards = ShardIndex(cache.index_path()).shards
    ahead = ReadAhead(cache, shards, lambda epoch: np.array([2, 0, 3, 1] if epoch == 0 else [1, 0, 2, 3]))
    assert ahead.needed_from(2) == [3, 1, 0, 2]  # of this epoch, then of the next
    ahead.most = 2
    assert [ahead.needed_from(position) for position in (0, 3, 4)] == [[2, 0], [1, 0], [1, 0]]
    batches = ahead.follow({"position": [position]} for position in range(4))
    for numbers in ({2, 0}, {2, 0, 3}):
        next(batches)
        wait_until(lambda numbers=numbers: numbers <= {shard.number for shard in shards if cache.has(shard)})
    batches.close()


def wait_until(is_so) -> None:
    for _ in range(1000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError
