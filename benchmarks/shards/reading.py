"""Clips out of shards beside those of their folder: how fast, and whether they are the same for all who read.

    python -m benchmarks.shards.reading --data_dir demo_data/train --shards SHARDS

Speed. One process, one thread. In each round the same random clips are read from the folder, from the shards
where they lie, and from a cache of whole shards; figures are medians over the rounds of CPU milliseconds per
clip, and of the ratio to the folder's in the same round. Order. The clips of some steps of the same global
batch, read by 1, 2 and 4 processes' streams with 0, 1 and 4 data workers, digested; all must be alike.
"""

import system.waiting  # before torch is loaded

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from datasets import GuidanceDataset, collate_clips
from shards.clips import ShardClips, ShardSettings
from training.batches import SampleStream, endless_batches

SETTINGS = {"resolution": 128, "sequence_length": 8, "seed": 42}  # the demo's
CLIPS_PER_ROUND = 24
GLOBAL_BATCH, NUM_STEPS = 4, 6
START_POSITION = 200  # in the midst of an epoch
PROCESSES, WORKERS = (1, 2, 4), (0, 1, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--shards", required=True, type=Path)
    parser.add_argument("--guidance_types", nargs="+", default=["music", "pose"])
    parser.add_argument("--guidance_input_channels", nargs="+", type=int, default=[35, 134])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    types = arguments.guidance_types, arguments.guidance_input_channels
    with tempfile.TemporaryDirectory() as folder:
        notes, cache = Path(folder, "notes"), Path(folder, "cache")
        sets = {
            "folder": GuidanceDataset(arguments.data_dir, *types, **SETTINGS),
            "shards": ShardClips(arguments.shards, *types, shards=ShardSettings(notes), **SETTINGS),
            "cache of shards": ShardClips(
                arguments.shards, *types, shards=ShardSettings(notes, cache), **SETTINGS
            ),
        }
        for name, (milliseconds, ratio) in speeds(sets, arguments.rounds).items():
            print(
                f"{name:16s} {milliseconds:6.1f} ms of CPU per clip, {ratio:.3f} of the folder's", flush=True
            )
        found = {}
        for num_processes in PROCESSES:
            for num_workers in WORKERS:
                digests = clips_of(sets["shards"], num_processes, num_workers)
                found[num_processes, num_workers] = digests
                alike = digests == found[PROCESSES[0], WORKERS[0]]
                words = f"{num_processes} processes, {num_workers} workers: {len(digests)} clips"
                print(f"{words}, {'alike' if alike else 'OTHERS'}", flush=True)


def speeds(sets: dict[str, GuidanceDataset], num_rounds: int) -> dict[str, tuple[float, float]]:
    """Return {what is read: (CPU milliseconds per clip, ratio to the first's)}, medians over the rounds."""
    generator, spent = np.random.default_rng(0), {name: [] for name in sets}
    indices = np.arange(len(next(iter(sets.values()))))
    for clips in sets.values():  # what is done once: digests, copies, first visits
        for index in indices.tolist():
            clips[index]
    for epoch in range(num_rounds):
        chosen = generator.choice(indices, CLIPS_PER_ROUND, replace=False).tolist()
        for name, clips in sets.items():
            spent[name].append(seconds_of(lambda clips=clips: read(clips, epoch, chosen)))  # noqa: B023
    rounds = {name: 1000 * np.array(seconds) / CLIPS_PER_ROUND for name, seconds in spent.items()}
    baseline = rounds[next(iter(sets))]
    return {name: (float(np.median(one)), float(np.median(one / baseline))) for name, one in rounds.items()}


def read(clips: GuidanceDataset, epoch: int, indices: list[int]) -> None:
    clips.set_epoch(epoch)
    for index in indices:
        clips[index]


def seconds_of(work: Callable[[], None]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def clips_of(clips: ShardClips, num_processes: int, num_workers: int) -> list[str]:
    """Return digests of the clips of some steps, in the order of the stream, as so many processes read it."""
    found, num_batches = {}, NUM_STEPS * GLOBAL_BATCH // num_processes
    for rank in range(num_processes):
        stream = SampleStream(
            range(len(clips)), batch_size=1, seed=42, rank=rank, num_processes=num_processes,
            start_position=START_POSITION, shard_numbers=clips.shard_numbers,
        )  # fmt: skip
        batches = endless_batches(clips, stream, collate_clips, num_workers=num_workers)
        for _ in range(num_batches):
            batch = next(batches)
            found[batch["position"][0]] = digest_of(batch)
        batches.close()
    return [found[position] for position in sorted(found)]


def digest_of(batch: dict) -> str:
    digest = hashlib.sha256("".join(batch["sample_id"]).encode())
    for tensor in (batch["frames"], batch["frame_indices"], *batch["guidance"].values()):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    main()
