"""Evaluations held against one another clip by clip; what was not measured alike is an error, or is named."""

import json
from xml.etree import ElementTree

import pytest

from evaluation.comparing import compare, short_names
from evaluation.page.comparison import write_comparison
from system.errors import ConfigError, DataError

CLIPS = [f"clip_{number}" for number in range(8)]


def samples(gain=0.0, clips=CLIPS, **other):
    """Clips of very different psnr; the gain differs a little between them."""
    return {
        clip: {"psnr": 15 + 4 * number + gain * (1 + number / 20), **other}
        for number, clip in enumerate(clips)
    }  # fmt: skip


def test_what_two_intervals_hide_is_found_in_pairs(write_evaluation, tmp_path):
    first, second = write_evaluation("first", samples()), write_evaluation("second", samples(1.0))
    comparison = compare([first, second])
    (metric,) = comparison.metrics
    assert metric.values["first"].high > metric.values["second"].low  # their intervals overlap
    assert metric.sentence("second").startswith("psnr: better by 1.18 dB")
    assert metric.differences["second"].mean == pytest.approx(1.175)
    again = compare([second, first]).metrics[0]
    assert again.sentence("first").startswith("psnr: worse by 1.18 dB")

    page = write_comparison(comparison, tmp_path / "table").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "table" / "comparison.json").read_text(encoding="utf-8"))
    sentence = content["metrics"]["psnr"]["differences"]["second"]["sentence"]
    table = (tmp_path / "table" / "table.md").read_text(encoding="utf-8")
    assert sentence == metric.sentence("second") and f"- {sentence}" in table and content["clips"] == CLIPS
    root = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>"))
    assert sentence in ["".join(span.itertext()) for span in root.iter("span")]


def test_equal_evaluations_are_the_same_and_few_clips_tell_nothing(write_evaluation):
    gains = {"a": 0, "b": 2, "c": 0}
    folders = [write_evaluation(name, samples(gain, CLIPS[:3])) for name, gain in gains.items()]
    (metric,) = compare(folders).metrics
    assert "3 clips cannot tell them apart" in metric.sentence("b") and "the same" in metric.sentence("c")


def test_other_clips_are_named_and_left_out(write_evaluation):
    first = write_evaluation("first", samples())
    second = write_evaluation("second", samples(clips=CLIPS[:6] + ["stranger"]))
    comparison = compare([first, second])
    assert comparison.clips == CLIPS[:6]
    assert comparison.notes == [
        "first has 2 clips that not all have, left out: clip_6, clip_7",
        "second has 1 clip that not all have, left out: stranger",
    ]
    third = write_evaluation("third", samples(clips=["nobody"]))
    with pytest.raises(DataError, match="no clip in common.*clip_0, clip_1, clip_2, ...; third: nobody"):
        compare([first, third])


def test_clips_of_other_lengths_are_compared_and_named(write_evaluation):
    first, second = write_evaluation("first", samples()), write_evaluation("second", samples())
    assert compare([first, second]).notes == []
    third = write_evaluation("third", samples(), num_frames=9)
    (note,) = compare([first, second, third]).notes
    assert note.startswith("third has another number of frames than first in 8 clips")
    assert note.endswith(": clip_0 (9, not 12), clip_1 (9, not 12), clip_2 (9, not 12), ...")
    for path in (third / "clips").iterdir():  # not kept: nothing to say
        path.unlink()
    assert compare([first, third]).notes == []


def test_a_metric_of_all_clips_has_its_values_only_where_the_clips_are_the_same(write_evaluation):
    whole = {"cmmd": {"value": 3.0, "low": 2.0, "high": 4.0, "higher_is_better": False, "protocol": "sets"}}
    counts = {"a": 8, "b": 8, "c": 7}
    folders = [write_evaluation(name, samples(clips=CLIPS[:count])) for name, count in counts.items()]
    for folder in folders:
        content = json.loads((folder / "metrics.json").read_text())
        content["metrics"] |= whole
        (folder / "metrics.json").write_text(json.dumps(content))
    cmmd = compare(folders[:2]).metrics[-1]
    assert (cmmd.row.name, cmmd.values["b"].high, cmmd.differences) == ("cmmd", 4.0, {})
    assert compare(folders).notes[-1].startswith("cmmd is left out: it is of all clips together")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"clips": {"num_frames": 8}}, "with num_frames 8, first with 16; .*with the same --num_frames"),
        ({"version": 2}, "second: was made with version 2, first with 1; .*with this version"),
    ],
)
def test_other_frames_or_another_version_are_an_error(write_evaluation, changed, problem):
    protocol = {"version": 1, "clips": {"num_frames": 16}}
    first = write_evaluation("first", samples(), protocol=protocol)
    second = write_evaluation("second", samples(), protocol=protocol | changed)
    with pytest.raises(DataError, match=problem):
        compare([first, second])


def test_another_judge_leaves_its_metrics_out_and_another_model_does_not(write_evaluation):
    protocols = [{"pose_estimator": judge, "model_path": judge} for judge in ("mediapipe", "dwpose")]
    folders = [
        write_evaluation(f"{number}", samples(seam_ratio=1.0), protocol=protocol)
        for number, protocol in enumerate(protocols)
    ]  # fmt: skip
    for folder in folders:
        text = (folder / "metrics.json").read_text().replace("seam_ratio", "oks")
        (folder / "metrics.json").write_text(text)
    comparison = compare(folders)
    assert [metric.row.name for metric in comparison.metrics] == ["psnr"]
    assert comparison.notes == ["oks is left out: pose_estimator is not the same: 0: mediapipe; 1: dwpose"]
    assert set(comparison.protocol) == {"pose_estimator", "model_path"}


def test_a_metric_that_one_lacks_is_named_with_its_reason(write_evaluation):
    first = write_evaluation("first", samples(l1=3.0))
    second = write_evaluation("second", samples(), skipped={"l1": "not asked for"})
    assert compare([first, second]).notes == ["l1 is left out: second does not have it (not asked for)"]


def test_folders_that_are_no_two_evaluations_are_refused(write_evaluation, tmp_path):
    first, second = write_evaluation("first", samples()), write_evaluation("second", samples())
    for folders in ([first], [first, first]):
        with pytest.raises(ConfigError, match="two or more folders"):
            compare(folders)
    with pytest.raises(ConfigError, match="is one of the evaluations"):
        write_comparison(compare([first, second]), first)
    with pytest.raises(DataError, match="no such folder"):
        compare([first, tmp_path / "none"])


def test_folders_of_one_name_are_told_apart(tmp_path):
    assert short_names([tmp_path / "a" / "eval", tmp_path / "b" / "eval"]) == ["a/eval", "b/eval"]


def test_a_metric_of_another_formula_is_left_out_and_one_of_fewer_clips_is_not(write_evaluation):
    folders = [write_evaluation(name, samples(l1=3.0)) for name in ("first", "second")]
    text = (folders[1] / "metrics.json").read_text()
    text = text.replace("how l1 is", "another way l1 is")
    text = text.replace("psnr is computed", "psnr is computed; 7 of 8 clips have a value")
    (folders[1] / "metrics.json").write_text(text)
    comparison = compare(folders)
    assert [metric.row.name for metric in comparison.metrics] == ["psnr"]
    assert comparison.notes[0].startswith("l1 is left out: its protocol is not the same: another way")
