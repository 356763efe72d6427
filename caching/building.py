"""A cache is built by all processes: each encodes its share of the samples, then all have all.

What is encoded is what training would encode, in batches of the same shape: networks give the same bits then.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from system.errors import ConfigError, UserError
from system.stop_request import Stopped, StopRequest

CHUNK_SIZE = 8  # of FrozenEncoders


class CacheEncoder:
    """Frozen encoders as a builder of the cache calls them; results are on the CPU, in the encoders' type."""

    def __init__(self, frozen, device: torch.device, *, batch_size: int, sequence_length: int):
        self.frozen, self.device, self.batch_size = frozen, device, batch_size
        self.num_frames = min(CHUNK_SIZE, batch_size * sequence_length)

    def on_device(self) -> AbstractContextManager:
        return self.frozen.on(self.device)

    def encode_frames(self, frames: Tensor) -> dict[str, Tensor]:
        """Return {latent_mean, latent_std}, each [n, 4, h, w], of at most num_frames frames [n, 3, H, W]."""
        mean, std = self.frozen.encode_moments(filled_up(frames, self.num_frames)[None].to(self.device))
        moments = {"latent_mean": mean, "latent_std": std}
        return {name: part[0, : len(frames)].cpu() for name, part in moments.items() if part is not None}

    def encode_reference(self, reference_image: Tensor, clip_image: Tensor) -> dict[str, Tensor]:
        """Return {reference_latents [4, h, w], image_tokens [L, D]} of a sample's images."""
        reference = filled_up(reference_image[None], self.batch_size).to(self.device)
        clip = filled_up(clip_image[None], self.batch_size).to(self.device)
        return {
            "reference_latents": self.frozen.encode_reference(reference)[0].cpu(),
            "image_tokens": self.frozen.encode_image_tokens(clip)[0].cpu(),
        }


def filled_up(rows: Tensor, count: int) -> Tensor:
    """Return [count, ...] of rows [n, ...]; the last one is repeated."""
    return torch.cat([rows, rows[-1:].expand(count - len(rows), *rows.shape[1:])])


def build_cache(
    cache,
    indices: Sequence[int],
    encoder,
    accelerator: Accelerator,
    *,
    num_bytes: Callable[[int, int], int],
    say: Callable[[str], None],
) -> dict[int, Path]:
    """Build what is missing of the samples `indices`, by all processes; return {index: file}.

    `num_bytes(frames, samples)` is about what so many take. A UserError or a request to stop (Stopped) in one
    process is raised in all of them.
    """
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    # Asked before anyone writes the folder of today's settings.
    notes = together(lambda: cache.note_on_other_settings() if rank == 0 else None)
    shares = together(lambda: cache.find(indices[rank::num_processes], rank))
    entries = [entry for share in shares for entry in share]
    missing = [entry for entry in entries if entry.reason is not None]
    if missing:
        num_there = len(entries) - len(missing)
        say(f"{cache.title} {cache.cache_dir}: {num_there} of {len(entries)} samples are there")
        for line in (*filter(None, notes), *reasons_to_rebuild(missing)):
            say(f"{cache.title}: {line}")
        num_frames = sum(entry.num_frames for entry in missing)
        together(lambda: cache.check_space(num_bytes(num_frames, len(missing))))
        if accelerator.is_main_process:
            cache.remove_abandoned()
        mine = [entry for entry in shares[rank] if entry.reason is not None]
        with encoder.on_device():
            together(lambda: _build_share(cache, mine, encoder, shows_progress=rank == 0))
        rebuilt = sum(entry.reason != "new" for entry in missing)
        samples = "1 sample" if len(missing) == 1 else f"{len(missing)} samples"
        say(f"{cache.title}: {samples} written, {rebuilt} of them rebuilt")
    together(lambda: _check_all_there(cache, entries))
    return {entry.index: entry.path for entry in entries}


def reasons_to_rebuild(entries: Sequence) -> list[str]:
    """Return a line for each reason, with the number of samples and the first ones' files."""
    counts = Counter(entry.reason for entry in entries if entry.reason != "new")
    lines = []
    for reason, count in sorted(counts.items()):
        names = [entry.path.stem.rsplit("-", 1)[0] for entry in entries if entry.reason == reason][:3]
        more = ", ..." if count > len(names) else ""
        lines.append(f"{count} to rebuild, {reason}: {', '.join(names)}{more}")
    return lines


def together(work: Callable) -> list:
    """Run `work` in all processes and return all results; an error of one is raised in all."""
    result, error = None, None
    try:
        result = work()
    except (UserError, Stopped) as caught:
        error = caught
    outcomes = gather_object([(result, error)])
    for _, error in outcomes:
        if error is not None:
            raise error
    return [result for result, _ in outcomes]


def _build_share(cache, entries: Sequence, encoder, *, shows_progress: bool) -> None:
    total = sum(entry.num_frames for entry in entries)
    bar = tqdm(total=total, unit="frame", desc=cache.title, dynamic_ncols=True, disable=not shows_progress)

    last_words = f"stopped; what is built of the {cache.title} is kept"

    def count(num_frames: int) -> None:
        bar.update(num_frames)
        if stop.signal_number:
            raise Stopped(stop.signal_number, last_words)

    with StopRequest() as stop, contextlib.closing(bar):
        for entry in entries:
            with stop.waiting(lambda: last_words):  # a drive may not answer
                cache.build(entry, encoder, count)


def _check_all_there(cache, entries: Sequence) -> None:
    lost = [entry.path for entry in entries if not entry.path.exists()]
    if lost:
        problem = f"{len(lost)} files that another process wrote are not seen here, as {lost[0].name}"
        raise ConfigError(f"--cache_dir {cache.cache_dir}: {problem}: give a folder that all machines share")
