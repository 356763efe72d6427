"""Which clips are kept for validation."""

from training.data import split_for_validation


def test_validation_split():
    few, held, note = split_for_validation(["a", "b"])
    assert few == held == [0, 1] and "validation uses training clips" in note
    names = [f"dance_{number:03d}" for number in range(100)]
    kept, held, note = split_for_validation(names)
    assert len(held) == 5 and sorted(kept + held) == list(range(100))
    assert all(names[index] in note for index in held)
    assert split_for_validation(names)[1] == held
    assert len(split_for_validation([str(number) for number in range(1000)])[1]) == 8
    _, more_held, _ = split_for_validation([*names, "dance_100"])
    assert {names[index] for index in held} & {[*names, "dance_100"][index] for index in more_held}
