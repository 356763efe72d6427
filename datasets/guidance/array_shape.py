"""Arrays with their axes in another order: which one step would put them right, if there is just one.

librosa gives features before frames, a model's output has a batch in front. A step is proposed only where the
shape that it leads to is the one expected.
"""

from collections.abc import Callable, Iterator, Sequence

Shape = tuple[int, ...]
ORDINALS = ("first", "second", "third", "fourth", "fifth")


def way_to(
    shape: Shape, is_right: Callable[[Shape], bool], num_rows: int | None = None
) -> tuple[str, Shape] | None:
    """Return (words, shape) of the one step that makes a shape right; None where there is none, or several.

    num_rows: how many rows there should be, where known; it decides between several.
    """
    if is_right(shape):
        return None
    ways = [(words, result) for words, result in steps(shape) if is_right(result)]
    if len(ways) > 1 and num_rows is not None:
        ways = [(words, result) for words, result in ways if result[0] == num_rows]
    return ways[0] if len(ways) == 1 else None


def steps(shape: Shape) -> Iterator[tuple[str, Shape]]:
    """Yield (what to do, the shape that it gives)."""
    for axis, length in enumerate(shape):
        if length != 1 or not 2 <= len(shape) <= len(ORDINALS):
            continue
        dropped = shape[:axis] + shape[axis + 1 :]
        drop = f"drop the {'last' if axis == len(shape) - 1 else ORDINALS[axis]} axis"
        yield drop, dropped
        if 1 not in dropped:
            yield from ((f"{drop} and then {words}", result) for words, result in moves(dropped))
    yield from moves(shape)


def moves(shape: Shape) -> Iterator[tuple[str, Shape]]:
    """Yield (what to do, the shape that it gives) for one axis at another place."""
    if len(shape) == 2:
        yield "transpose it", shape[::-1]
        return
    for source in range(len(shape)):
        for target in range(len(shape)):
            if target in (source, source + 1):  # the axis after it moved back is the same
                continue
            rest = [length for axis, length in enumerate(shape) if axis != source]
            words = f"move its axes with numpy.moveaxis(array, {source}, {target})"
            yield words, tuple([*rest[:target], shape[source], *rest[target:]])


def expected_rows(row_shapes: Sequence[str]) -> str:
    """Return words for the shapes of whole files whose rows have these shapes, such as "(35, H, W)"."""
    return " or ".join("(N, " + row.strip("(").replace(",)", ")") for row in row_shapes)
