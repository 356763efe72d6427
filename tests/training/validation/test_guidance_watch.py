"""Guidance that is not used is noticed once, and only then."""

from training.validation.guidance_watch import GuidanceWatch


def scalars(pose=2.0, music=0.001, music_alone=0.002, reference=1.0):
    return {
        "val_loss": 0.1, "guidance_gap/pose": pose, "guidance_gap/music": music,
        "guidance_gap_alone/music": music_alone, "guidance_gap/reference": reference,
    }  # fmt: skip


def test_unused_guidance_is_told_once_after_enough_validations():
    watch = GuidanceWatch(patience=3)
    said = [watch.look(scalars()) for _ in range(6)]
    assert [len(lines) for lines in said] == [0, 0, 1, 0, 0, 0]
    line = said[2][0]
    assert "does not use music" in line and "guidance_gap/music" in line and "--guidance_dropout" in line


def test_a_validation_that_shows_use_starts_the_count_anew():
    watch = GuidanceWatch(patience=2)
    assert not watch.look(scalars())
    assert not watch.look(scalars(music=0.3))
    assert not watch.look(scalars())
    assert len(watch.look(scalars())) == 1


def test_a_type_that_is_used_alone_is_used():
    """Beside a pose that says everything music adds nothing, and yet drives a clip by itself."""
    watch = GuidanceWatch(patience=1)
    assert not watch.look(scalars(music=0.0, music_alone=0.6))


def test_an_unused_reference_has_advice_of_its_own():
    lines = GuidanceWatch(patience=1).look(scalars(music_alone=0.5, reference=-0.2))
    assert len(lines) == 1 and "--reference_dropout" in lines[0] and "guidance_dropout" not in lines[0]
