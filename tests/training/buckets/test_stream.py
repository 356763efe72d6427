"""Steps of one clip size: every sample in its turn, the same for any number of processes, from any step."""

import itertools
from collections import Counter

import pytest

from training.batches import SampleStream
from training.buckets.stream import BucketStream

TALL, SQUARE, WIDE = (640, 384), (512, 512), (384, 640)
SIZES = dict(enumerate([TALL] * 7 + [SQUARE] * 3 + [WIDE]))


def make_stream(batch_size=4, micro_batches=1, **more):
    return BucketStream(
        list(SIZES), batch_size=batch_size, seed=5, sizes=SIZES, micro_batches=micro_batches, **more
    )


def take(stream, count):
    return list(itertools.islice(stream, count))


def test_a_step_has_one_size_and_nothing_is_left_out():
    steps = take(make_stream(), 44)
    assert all(len({SIZES[index] for _, _, index in step}) == 1 for step in steps)
    assert [position for step in steps for position, _, _ in step] == list(range(4 * 44))
    clips = [(epoch, index) for step in steps for _, epoch, index in step]
    assert len(set(clips)) == len(clips)
    # 16 epochs of 11 samples: what is missing of them waits, at most 3 of a size, and is of the last ones.
    missing = {(epoch, index) for epoch in range(16) for index in SIZES} - set(clips)
    waiting = Counter(SIZES[index] for _, index in missing)
    assert all(count < 4 for count in waiting.values()) and len(clips) + len(missing) <= 11 * 17
    assert {epoch for epoch, index in missing if SIZES[index] == TALL} <= {15}


def test_the_order_is_another_in_each_epoch_and_for_another_seed():
    sizes = [SIZES[step[0][2]] for step in take(make_stream(batch_size=1), 33)]
    epochs = [tuple(sizes[first : first + 11]) for first in (0, 11, 22)]
    assert len(set(epochs)) == 3 and all(sorted(epoch) == sorted(SIZES.values()) for epoch in epochs)
    other = BucketStream(list(SIZES), batch_size=1, seed=6, sizes=SIZES, micro_batches=1)
    assert take(other, 33) != take(make_stream(batch_size=1), 33)


@pytest.mark.parametrize("shape", [(1, 4, 1), (2, 2, 1), (1, 2, 2), (2, 1, 2)])
def test_processes_and_micro_batches_share_a_step(shape):
    batch_size, num_processes, micro_batches = shape
    streams = [
        make_stream(batch_size, micro_batches, rank=rank, num_processes=num_processes)
        for rank in range(num_processes)
    ]
    ranks = [take(stream, 20 * micro_batches) for stream in streams]
    shared = [clip for turn in zip(*ranks, strict=True) for batch in turn for clip in batch]
    assert shared == [clip for step in take(make_stream(), 20) for clip in step]


@pytest.mark.parametrize("per_step", [1, 4, 30])
def test_it_goes_on_at_any_step(per_step):
    whole = take(make_stream(per_step), 60)
    for step in range(50):
        found = take(make_stream(per_step, start_position=step * per_step), 10)
        assert found == whole[step : step + 10], step


def test_after_a_change_of_the_clips_per_step_positions_go_on():
    (position, _, _), *_ = take(make_stream(start_position=6), 1)[0]
    assert position == 6


def test_of_one_size_it_is_the_usual_stream():
    sizes = dict.fromkeys(SIZES, TALL)
    one = BucketStream(list(SIZES), batch_size=2, seed=5, sizes=sizes, micro_batches=2)
    assert take(one, 30) == take(SampleStream(list(SIZES), batch_size=2, seed=5), 30)
