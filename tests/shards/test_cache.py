"""The cache of whole shards: damaged copies come again, and it holds no more than it may."""

import pytest

from shards.cache import ShardCache
from shards.fetching import Store
from shards.index import ShardIndex
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
