"""The page of an evaluation: every number, escaped, without the network; players show the right frames."""

import base64
import hashlib
import io
import re
import wave
from xml.etree import ElementTree

import av
import numpy as np
import pytest

from evaluation.page import players
from evaluation.page import report as page_report
from evaluation.page.curves import make_timeline
from evaluation.page.kept import ClipCurves, Evaluation, MetricValue, read_clip, read_evaluation
from evaluation.page.numbers import floor_strips
from evaluation.page.players import PlayerSource, frames_shown, make_player
from evaluation.page.report import Ranking, rank_clips, write_report
from evaluation.page.table import write_table
from system.errors import DataError

HOSTILE = "<img src=x onerror=alert(1)> & \"me\" 'you'"


def words_of(element) -> str:
    return " ".join("".join(element.itertext()).split())


def levels_source(num_frames=12, rate=12.0, sound=None) -> PlayerSource:
    """A clip of 12x8 pixels whose prediction has the level 10 * frame, its truth 0, its reference 255."""

    def of_level(level):
        return lambda shown: (np.full((12, 8, 3), level(frame), np.uint8) for frame in shown)

    columns = {
        "reference": np.full((24, 40, 3), 255, np.uint8), "truth": of_level(lambda frame: 0),
        "prediction": of_level(lambda frame: min(250, 10 * frame)),
    }  # fmt: skip
    return PlayerSource(rate, num_frames, (12, 8), columns, sound)


@pytest.fixture
def page(write_evaluation):
    """page(samples, open_clip, ...): (text, its root element)."""

    def make(samples, open_clip=lambda clip: levels_source(), **parts):
        folder = write_evaluation("eval", samples, **parts)
        text = write_report(folder, open_clip).read_text(encoding="utf-8")
        return text, ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))

    return make


def test_every_number_is_on_the_page_with_its_meaning_and_its_floors(page):
    samples = {"a": {"psnr": 21.0, "l1": 7.5}, "b": {"psnr": 23.0, "l1": 6.5}}
    floors = {"reference_repeated": {"psnr": 12.34, "l1": 20.0}, "vae_round_trip": {"psnr": 40.0}}
    skipped = {"lpips": "give --lpips_path FILE"}
    text, root = page(samples, floors=floors, skipped=skipped, protocol={"num_frames": 12, "context": [4, 1]})
    words = words_of(root)
    for part in (
        "22.0", "12.3", "How: how psnr is computed", "higher is better", "lpips: give --lpips_path FILE",
        "num frames12", "context4, 1", "the reference image in every frame", "worst 1 of 2", "best 1 of 2",
        "reference | truth | prediction; 8x12 each",
    ):  # fmt: skip
        assert part in words, part
    assert [words_of(h3) for h3 in root.iter("h3")] == ["a", "b"]
    assert len(list(root.iter("video"))) == 2


def test_what_comes_from_files_is_escaped_and_only_our_script_may_run(page):
    def open_clip(clip):
        raise DataError(HOSTILE, "is cut off", "replace the file")

    samples = {HOSTILE.replace("/", ""): {"psnr": 20.0}}
    text, root = page(samples, open_clip, skipped={"fid": HOSTILE}, protocol={"predictions": HOSTILE})
    assert "<img src=x" not in text and words_of(root).count(f"No player: {HOSTILE}: is cut off") == 1
    policy = next(meta.get("content") for meta in root.iter("meta") if meta.get("http-equiv"))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|url\(|@import", text)
    assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)


def test_only_the_worst_and_best_clips_have_players_and_the_others_are_listed(page):
    opened = []

    def open_clip(clip):
        opened.append(clip)
        raise DataError(clip, "is not here", "bring it")

    samples = {f"clip_{number:02d}": {"l1": float(number)} for number in range(15)}
    _, root = page(samples, open_clip)
    ids = sorted(samples)
    assert opened == [words_of(h3) for h3 in root.iter("h3")] == ids[:9:-1] + ids[:5]
    listed = [words_of(row[0]) for row in list(root.iter("table"))[-1].iter("tr")][1:]
    assert listed == sorted(samples, reverse=True)


def test_clips_without_a_value_are_neither_worst_nor_best(write_evaluation):
    samples = {"a": {"psnr": None, "l1": 1.0}, "b": {"psnr": 30.0}, "c": {"psnr": 10.0}}
    folder = write_evaluation("eval", {clip: {"psnr": 1.0} for clip in "abc"})
    evaluation = read_evaluation(folder)
    evaluation.samples = samples
    ranking = rank_clips(evaluation)
    assert (ranking.metric, ranking.clips, ranking.num_ranked) == ("psnr", ["c", "b", "a"], 2)
    assert [ranking.words(place) for place in range(3)] == ["worst 1 of 2", "best 1 of 2", "no psnr"]


def test_a_player_shows_its_columns_at_their_frames(monkeypatch):
    player = make_player(levels_source(), around=7)
    with av.open(io.BytesIO(player.video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert player.size == frames[0].shape[:2] and len(frames) == 12 and player.still_frame == 7
    column = frames[7][-6, :]  # reference, truth, prediction: 8 pixels each, 2 between them
    assert column[4].mean() > 230 and column[14].mean() < 25 and abs(column[24].mean() - 70) < 15
    assert not player.has_sound and not player.is_part

    monkeypatch.setattr(players, "MAX_SECONDS", 0.5)
    part = make_player(levels_source(), around=9)
    assert (part.start_seconds, part.seconds, part.is_part) == (0.5, 0.5, True)


def test_a_player_takes_the_sound_of_its_part(tmp_path, monkeypatch):
    with wave.open(str(tmp_path / "tone.wav"), "wb") as file:
        file.setparams((1, 2, 44_100, 44_100, "NONE", ""))
        file.writeframes((9000 * np.sin(np.arange(44_100) / 20)).astype("<i2").tobytes())
    monkeypatch.setattr(players, "MAX_SECONDS", 0.5)
    player = make_player(levels_source(sound=(tmp_path / "tone.wav", 0.0)), around=11)
    assert player.has_sound and player.start_seconds == 0.5
    with av.open(io.BytesIO(player.video)) as container:
        seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert 0.4 < seconds < 0.6


def test_long_and_fast_clips_are_shown_in_part():
    assert frames_shown(24, 240, 100) == range(0, 240)
    assert frames_shown(24, 2400, 1000) == range(856, 1144)
    assert frames_shown(24, 2400, 2399) == range(2112, 2400)
    assert frames_shown(60, 600) == range(0, 600, 2) and frames_shown(29.97, 10).step == 1


def test_curves_lie_at_their_frames_and_name_the_worst(write_evaluation):
    folder = write_evaluation("eval", {"a": {"psnr": 20.0}})
    timeline = make_timeline(read_clip(folder, "a"), read_evaluation(folder).metrics)
    psnr, jumps = timeline.curves
    assert (psnr.extreme, psnr.extreme_text, psnr.extreme_frame) == ("worst", "3.25", 5)
    assert np.allclose(psnr.line[:, 0], np.arange(12) / 12) and psnr.extreme_seconds == 5.5 / 12
    assert jumps.extreme == "highest" and np.isnan(jumps.line[:3, 1]).all() and "null" in jumps.points
    assert (timeline.borders, timeline.beats) == ([0.5], [0.5])  # the first window's start is no border
    assert [words for _, words in timeline.ticks][:2] == ["0 s", "0.2 s"]


def test_a_curve_of_neighbouring_frames_begins_at_the_second_and_a_long_one_keeps_its_worst():
    clip = ClipCurves("a", 10.0, 9001, curves={"dtssd": [1.0] * 7000 + [9.0] + [1.0] * 1999})
    (curve,) = make_timeline(clip, {"dtssd": MetricValue("dtssd", 1.0, higher_is_better=False)}).curves
    assert curve.extreme_frame == 7001 and curve.line[:, 1].max() == 9 and len(curve.line) < 1600
    assert curve.line[0, 0] == pytest.approx(1 / 9001)


def test_a_number_no_better_than_a_floor_says_so(write_evaluation):
    samples = {f"{number}": {"psnr": 20 + number / 10, "l1": 5.0} for number in range(8)}
    floors = {
        "reference_repeated": {"psnr": 20.3, "l1": 4.0}, "another_video": {"psnr": 10.0, "l1": 9.0},
        "truth_itself": {"psnr": 100.0, "l1": 0.0},
    }  # fmt: skip
    psnr, l1 = floor_strips(read_evaluation(write_evaluation("eval", samples, floors=floors)))
    assert psnr.verdicts == [("warning", "not told apart from reference_repeated")]
    assert l1.verdicts == [("error", "no better than reference_repeated")]
    places = {mark.name: mark.place for mark in l1.marks}
    assert places["truth_itself"] > places["reference_repeated"] > places["this evaluation"]


@pytest.mark.parametrize(
    ("truth", "verdicts"),
    [
        (5.0, []),
        (2.0, [("error", "no better than another_video")]),
        (None, [("error", "no better than still")]),
    ],
)
def test_what_is_better_than_the_truth_is_no_floor(truth, verdicts):
    floors = {"still": 0.0, "another_video": 4.0, "truth_itself": truth}
    if truth is None:
        floors["another_video"] = 9.0
    row = MetricValue("background_flicker", 5.0, 4.5, 5.5, "levels", False)
    evaluation = Evaluation(
        {}, {row.name: row}, {floor: {row.name: value} for floor, value in floors.items()}
    )
    assert floor_strips(evaluation)[0].verdicts == verdicts


def test_the_table_has_numbers_meanings_and_what_is_skipped(write_evaluation):
    samples = {"a": {"psnr": 21.0}, "b": {"psnr": 23.0}}
    parts = {"floors": {"another_video": {"psnr": 9.0}}, "skipped": {"fid": "give | it"}}
    folder = write_evaluation("eval", samples, **parts)
    table = write_table(folder).read_text(encoding="utf-8")
    assert "| metric | value | 95 % interval | unit |  | another_video |" in table
    row = next(line for line in table.splitlines() if line.startswith("| `psnr`"))
    assert re.fullmatch(r"\| `psnr` \| 22\S* \| \S+ to \S+ \| dB \| higher is better \| 9\S* \|", row)
    assert "- `psnr`: How near the pixels are" in table and "- `fid`: give | it" in table


def test_an_unreadable_folder_is_one_error(tmp_path, write_evaluation):
    with pytest.raises(DataError, match="no such folder"):
        read_evaluation(tmp_path / "none")
    folder = write_evaluation("eval", {"a": {"psnr": 20.0}})
    (folder / "metrics.json").write_text("[]")
    with pytest.raises(DataError, match="is not what evaluate_guidance.py writes"):
        read_evaluation(folder)
    assert page_report.read_clip(folder, "unknown") is None


def test_clips_with_a_section_are_there_once():
    clips = [f"clip {place}" for place in range(12)]
    for num_ranked in (0, 3, 9, 12):
        shown = Ranking("psnr", clips, num_ranked).shown
        assert len(shown) == len(set(shown)) == 10 and set(shown) <= set(range(12))
