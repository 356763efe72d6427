"""Shards in an object store that is slow, fails, cuts connections or is gone for a while."""

import gc
import multiprocessing
import threading
import weakref

import pytest
import torch

import pack_guidance
from datasets import GuidanceDataset
from shards import fetching
from shards.cache import ShardCache
from shards.clips import ShardClips, ShardSettings
from shards.fetching import Store
from shards.index import ShardIndex
from system.errors import ConfigError, DataError, RunError

pytest.importorskip("s3fs", reason="pip install -r requirements-dev.txt")
pytest.importorskip("moto", reason="pip install -r requirements-dev.txt")

from tests.shards.s3_server import request, s3_server, upload  # noqa: E402
from tests.training.runs import assert_same_bits, final_weights, run  # noqa: E402

KEYWORDS = {"resolution": 64, "sequence_length": 4, "seed": 5}
TYPES = (["music", "pose"], [35, 134])


@pytest.fixture(scope="module")
def server():
    with s3_server() as proxy:
        yield proxy


@pytest.fixture
def proxy(server, monkeypatch):
    """The proxy without faults; s3fs finds it by what the environment says."""
    server.faults, server.is_gone, server.fetched = [], False, []
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # the tries are ours
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    monkeypatch.setattr(fetching, "PAUSES", (0.01,))
    monkeypatch.setattr(fetching, "BLOCK_BYTES", 2**14)
    return server


def test_clips_from_a_store_with_faults_are_those_of_the_folder(proxy, tiny_data, tiny_shards, tmp_path):
    address = upload(proxy, tiny_shards, "faults")
    proxy.faults = ["slow", "error", "cut", "cut", "error"]
    clips = ShardClips(address, *TYPES, shards=ShardSettings(cache_dir=tmp_path), **KEYWORDS)
    folder = GuidanceDataset(tiny_data, *TYPES, **KEYWORDS)
    for index in range(len(folder)):
        assert torch.equal(clips[index]["frames"], folder[index]["frames"])
    assert proxy.faults == []
    proxy.fetched = []
    again = ShardClips(address, *TYPES, shards=ShardSettings(cache_dir=tmp_path), **KEYWORDS)
    assert torch.equal(again[0]["frames"], folder[0]["frames"])
    assert proxy.fetched == []  # it lies in the cache


def test_a_run_from_a_store_has_the_bits_of_one_from_the_folder(proxy, flags, tiny_shards, tmp_path):
    proxy.faults = ["slow", "error", "cut"]
    away = ["--train_data_dir", upload(proxy, tiny_shards, "run"), "--output_dir", tmp_path / "two"]
    assert run(flags, "--max_train_steps", 2) == 0
    assert run(flags, "--max_train_steps", 2, *away, "--num_workers", 1) == 0
    assert_same_bits(final_weights(tmp_path / "out"), final_weights(tmp_path / "two"))
    assert proxy.faults == [] and list((tmp_path / "two" / "shard_cache").glob("*/000000.tar"))


def test_a_forked_process_leaves_the_connections_of_this_one(proxy, tiny_shards, tmp_path):
    cache = make_cache(upload(proxy, tiny_shards, "forked"), tmp_path)
    shard = ShardIndex(cache.index_path()).shards[0]
    parents = weakref.ref(fetching._opened(cache.store.address)[0])  # closes its connections when it goes

    def fetch():
        cache.path_of(shard)
        gc.collect()
        assert parents() not in (None, fetching._opened(cache.store.address)[0])

    child = multiprocessing.get_context("fork").Process(target=fetch)
    child.start()
    child.join()
    assert (child.exitcode, cache.path_of(shard).stat().st_size) == (0, shard.size)


def test_a_store_that_is_gone_is_waited_for(proxy, tiny_shards, tmp_path, monkeypatch, capsys):
    cache = make_cache(upload(proxy, tiny_shards, "gone"), tmp_path)
    shard = ShardIndex(cache.index_path()).shards[0]
    monkeypatch.setattr(fetching, "NOTE_SECONDS", 0.02)
    proxy.is_gone = True
    back = threading.Timer(0.5, lambda: setattr(proxy, "is_gone", False))
    back.start()
    assert cache.path_of(shard).read_bytes() == (tiny_shards / shard.name).read_bytes()
    assert f"waiting for s3://bucket/gone/{shard.name}" in capsys.readouterr().err
    back.join()

    proxy.is_gone = True
    monkeypatch.setattr(fetching, "MOST_SECONDS", 0.02)
    cache.path_of(shard).unlink()
    with pytest.raises(
        RunError, match=f"in vain for s3://bucket/gone/{shard.name}.*see that the store answers"
    ):
        cache.path_of(shard)


def test_what_is_missing_or_changed_in_the_store_is_named(proxy, tiny_shards, tmp_path, capsys):
    address = upload(proxy, tiny_shards, "changed")
    assert pack_guidance.main(["--data_dir", address, "--verify"]) == 0
    assert f"{address}: 3 samples in 1 shard, all as the index says" in capsys.readouterr().out
    cache = make_cache(address, tmp_path)
    shard = ShardIndex(cache.index_path()).shards[0]
    content = bytearray((tiny_shards / shard.name).read_bytes())
    content[5000] ^= 1
    request(proxy.server, "PUT", f"/bucket/changed/{shard.name}", bytes(content))
    with pytest.raises(DataError, match=f"{address}/{shard.name}: has another content than the index says"):
        cache.path_of(shard)
    assert pack_guidance.main(["--data_dir", address, "--verify"]) == 2
    assert f"{address}/{shard.name}: is not as the index says" in capsys.readouterr().err
    request(proxy.server, "DELETE", f"/bucket/changed/{shard.name}")
    with pytest.raises(DataError, match=f"{address}/{shard.name}: is missing in the store"):
        cache.path_of(shard)
    with pytest.raises(DataError, match="s3://bucket/nothing/index.sqlite: is missing in the store"):
        make_cache("s3://bucket/nothing", tmp_path).index_path()
    with pytest.raises(ConfigError, match="give a folder, or an address"):
        make_cache("s4://bucket/nothing", tmp_path).index_path()


def make_cache(address, folder) -> ShardCache:
    return ShardCache(Store(address), folder, 2**30)
