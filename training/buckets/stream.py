"""The order of the samples where clips have several sizes: all clips of an optimizer step have one.

The samples come by in the order of `SampleStream`, and each waits with those of its size until they are as
many as a step takes. Nothing is left out: what waits at the end of an epoch is joined by the next epoch's.
"""

import bisect
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass

from datasets.transforms import Size
from training.batches import SampleStream


@dataclass
class BucketStream(SampleStream):
    """Batches as of SampleStream, whose step is of one size, however many processes take it.

    A function of (seed, clips per step, place of the step): it goes on at any step.
    """

    _: KW_ONLY
    sizes: Mapping[int, Size]  # of each of the indices
    micro_batches: int  # of each process in a step

    @property
    def clips_per_step(self) -> int:
        return self.batch_size * self.num_processes * self.micro_batches

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        position = self.start_position
        # After a change of the clips per step, at the nearest step before.
        for clips in self.steps(self.start_position // self.clips_per_step):
            for first in range(self.rank, self.num_processes * self.micro_batches, self.num_processes):
                places = range(first * self.batch_size, (first + 1) * self.batch_size)
                yield [(position + place, *clips[place]) for place in places]
            position += self.clips_per_step

    def steps(self, first_step: int) -> Iterator[list[tuple[int, int]]]:
        """Yield the (epoch, index) of all clips of each step, from a step of the run on."""
        counts, per_step = Counter(self.sizes[index] for index in self.indices), self.clips_per_step
        start = self._start_of_replay(first_step, counts)
        # What waits there is of steps that are over: its number is all that counts.
        waiting = {size: [None] * (start * count % per_step) for size, count in counts.items()}
        step = sum(start * count // per_step for count in counts.values())
        for epoch in itertools.count(start):
            for index in map(int, self.order(epoch)):
                clips = waiting[self.sizes[index]]
                clips.append((epoch, index))
                if len(clips) == per_step:
                    if step >= first_step:
                        yield clips
                    waiting[self.sizes[index]] = []
                    step += 1

    def _start_of_replay(self, first_step: int, counts: Mapping[Size, int]) -> int:
        """Return the epoch from which on the samples come by that wait when the epoch of a step begins."""
        per_step = self.clips_per_step
        latest = (first_step + len(counts)) * per_step // len(self.indices) + 1
        epoch = bisect.bisect_right(
            range(latest + 1), first_step,
            key=lambda epoch: sum(epoch * count // per_step for count in counts.values()),
        ) - 1  # fmt: skip
        return min(epoch * count // per_step * per_step // count for count in counts.values())
