"""The order of the training samples, and the loader that follows it.

All epochs form one endless stream of samples; a step takes the next `clips per step` of it, whatever the
number of processes or micro-batches. Each sample is seen once per epoch, and a run resumes at any position.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from system.errors import RunError

from .data_workers import describe_death, leave_signals_to_main, name_of, worker_deaths_found_here
from .objective import mix_seed

FEATURES = ("reference_bank", "guidance_features")  # what a feature cache adds to a batch


class SampleStream:
    """Batches of (position, epoch, index) for one process, from `start_position` of the stream on, endlessly.

    Micro-batch m of process r holds the stream's samples (m x processes + r) x batch_size and the following:
    together the processes read the stream without a gap.
    """

    def __init__(
        self,
        indices: Sequence[int],
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        num_processes: int = 1,
        start_position: int = 0,
    ):
        self.indices = list(indices)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.num_processes = num_processes
        self.start_position = start_position

    def order(self, epoch: int) -> list[int]:
        """Return the dataset indices of an epoch in the order they are trained."""
        generator = torch.Generator().manual_seed(mix_seed(self.seed, epoch))
        return [
            self.indices[place] for place in torch.randperm(len(self.indices), generator=generator).tolist()
        ]

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        known_epoch, order = None, []
        first = self.start_position + self.rank * self.batch_size
        while True:
            batch = []
            for position in range(first, first + self.batch_size):
                epoch, place = divmod(position, len(self.indices))
                if epoch != known_epoch:
                    known_epoch, order = epoch, self.order(epoch)
                batch.append((position, epoch, order[place]))
            yield batch
            first += self.num_processes * self.batch_size


class _EpochSamples(Dataset):
    """The dataset under keys (position, epoch, index), so that workers that live on know the epoch.

    `now_read` [workers, 2] holds each worker's pid and the index of the sample that it is reading, or -1.
    """

    def __init__(self, dataset, user_errors: tuple[type[Exception], ...], now_read: torch.Tensor):
        self.dataset = dataset
        self.user_errors = user_errors
        self.now_read = now_read

    def __getitem__(self, key: tuple[int, int, int]):
        position, epoch, index = key
        self.dataset.set_epoch(epoch)
        worker = get_worker_info()
        if worker is not None:
            self.now_read[worker.id] = torch.tensor([os.getpid(), index])
        try:
            return position, self.dataset[index]
        except self.user_errors as error:
            # Sent as a value: raised in a worker it would arrive as a traceback inside a message.
            return position, error
        except (OSError, MemoryError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            return position, RunError(f"sample {name_of(self.dataset, index)} cannot be read: {why}")
        finally:
            if worker is not None:
                self.now_read[worker.id, 1] = -1


class _Collate:
    def __init__(self, collate: Callable):
        self.collate = collate

    def __call__(self, samples: list):
        for _, item in samples:
            if isinstance(item, Exception):
                return item
        return {
            **self.collate([item for _, item in samples]),
            "position": [position for position, _ in samples],
        }


def endless_batches(
    dataset,
    stream: SampleStream,
    collate: Callable,
    *,
    num_workers: int,
    pin_memory: bool = False,
    user_errors: tuple[type[Exception], ...] = (),
) -> Iterator[dict]:
    """Yield batch dicts in the stream's order, with "position", the samples' places in the stream.

    `user_errors` are raised as the dataset raised them, also from a worker process. Raises RunError, with
    the sample, for a file that cannot be read and for a worker that died.
    """
    now_read = torch.full((max(1, num_workers), 2), -1).share_memory_()
    loader = DataLoader(
        _EpochSamples(dataset, user_errors, now_read),
        batch_sampler=stream,
        collate_fn=_Collate(collate),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_main,
    )
    with worker_deaths_found_here():
        children = multiprocessing.active_children()
        iterator = iter(loader)
        workers = [child for child in multiprocessing.active_children() if child not in children]
    try:
        for batch in iterator:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    except RuntimeError as error:
        dead = [worker for worker in workers if worker.exitcode is not None]
        if isinstance(error, RunError) or not dead:
            raise
        raise RunError(describe_death(dead[0], dataset, now_read)) from None
    finally:
        # Ends the workers now. Kept alive by an exception's traceback, they would end by 5 s timeouts each.
        del iterator, loader


def move_batch(batch: dict, device: torch.device) -> dict:
    """Return the batch with what the networks see on `device`; the rest, such as times in float64, stays."""
    moved = dict(batch)
    for name, value in batch.items():
        if isinstance(value, dict):
            moved[name] = {key: tensor.to(device, non_blocking=True) for key, tensor in value.items()}
        elif isinstance(value, torch.Tensor) and not name.startswith("frame_"):
            moved[name] = value.to(device, non_blocking=True)
    return moved


def encode_batch(frozen, batch: dict, seeds: Sequence[int]) -> tuple[torch.Tensor, dict]:
    """Return latents [B, F, 4, h, w] and the conditions the objective takes.

    The batch has pictures, or what a latent cache keeps of them.
    The VAE samples clip b with seeds[b], on the CPU: the same numbers in any batch and on any device.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if "latent_mean" in batch:
        latents = frozen.sample_latents(batch["latent_mean"], batch.get("latent_std"), generators)
        reference_latents, image_tokens = batch["reference_latents"], batch["image_tokens"]
    else:
        latents = frozen.encode_frames(batch["frames"], generator=generators)
        reference_latents = frozen.encode_reference(batch["reference_image"])
        image_tokens = frozen.encode_image_tokens(batch["clip_image"])
    # The VAE may leave channels last: the same numbers in another order in memory give other roundings.
    return latents.float().contiguous(), {
        "reference_latents": reference_latents.float().contiguous(),
        "image_tokens": image_tokens.float().contiguous(),
        "guidance": batch["guidance"],
        **{name: batch[name] for name in FEATURES if name in batch},
    }
