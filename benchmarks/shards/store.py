"""How long does training wait for clips out of an object store? With a cache of shards, cold and warm.

    python -m benchmarks.shards.store --shards SHARDS --step_seconds 2

A server on this machine speaks S3; before it is one that answers late, and slowly. A stand-in for training
takes batches as training does, with one data worker, and sleeps for as long as the step takes: what is
counted is the wait for the next batch, by the wall. First with nothing in the cache, then with all that the
first run left there, then from the folder of shards.
"""

import system.waiting  # before torch is loaded

import argparse
import multiprocessing
import os
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from datasets import collate_clips
from shards.clips import ShardClips, ShardSettings
from tests.shards.s3_server import s3_server, upload
from training.batches import SampleStream, endless_batches

SETTINGS = {"resolution": 128, "sequence_length": 8, "seed": 42}  # the demo's
BATCH_SIZE = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", required=True, type=Path)
    parser.add_argument("--guidance_types", nargs="+", default=["music", "pose"])
    parser.add_argument("--guidance_input_channels", nargs="+", type=int, default=[35, 134])
    parser.add_argument("--step_seconds", type=float, default=2.0)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--megabytes_per_second", type=float, default=20.0, help="of each answer")
    parser.add_argument("--delay_seconds", type=float, default=0.05, help="of each answer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    limits = arguments.megabytes_per_second * 1e6, arguments.delay_seconds
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("fork").Process(
        target=serve, args=(arguments.shards, limits, theirs), daemon=True
    )
    server.start()
    address, endpoint = ours.recv()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        os.environ[name] = "test"
    os.environ |= {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    with tempfile.TemporaryDirectory() as folder:
        cached = ShardSettings(cache_dir=Path(folder, "cache"))
        local = ShardSettings(Path(folder, "notes"))
        for name, root, settings in (
            ("cold cache", address, cached), ("warm cache", address, cached),
            ("shards here", arguments.shards, local),
        ):  # fmt: skip
            print(f"{name}: {waits(root, settings, arguments)}", flush=True)


def serve(shards: Path, limits: tuple[float, float], pipe: Connection) -> None:
    """Serve shards until this process is ended; send the shards' address and the server's."""
    with s3_server() as proxy:
        address = upload(proxy, shards, "shards")
        proxy.bytes_per_second, proxy.delay = limits
        pipe.send((address, proxy.address))
        time.sleep(10**6)


def waits(root: str | Path, settings: ShardSettings, arguments: argparse.Namespace) -> str:
    """Return words on how long steps waited for their clips."""
    started = time.perf_counter()
    clips = ShardClips(
        root, arguments.guidance_types, arguments.guidance_input_channels, shards=settings, **SETTINGS
    )  # fmt: skip
    stream = SampleStream(
        range(len(clips)), batch_size=BATCH_SIZE, seed=42, shard_numbers=clips.shard_numbers
    )  # fmt: skip
    batches = endless_batches(clips, stream, collate_clips, num_workers=1)
    batches = clips.followed(batches, stream.order)
    next(batches)
    first, seconds = time.perf_counter() - started, []
    for _ in range(arguments.steps):
        time.sleep(arguments.step_seconds)
        before = time.perf_counter()
        next(batches)
        seconds.append(time.perf_counter() - before)
    batches.close()
    share = sum(seconds) / (sum(seconds) + arguments.steps * arguments.step_seconds)
    waited = f"{100 * share:.2f} % of {arguments.steps} steps' time was a wait"
    return f"first batch after {first:.1f} s; then {waited}, at most {max(seconds):.2f} s of one"


if __name__ == "__main__":
    main()
