"""A job of the page: progress with the time left, the result, or one line."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from page.progress import Remaining
from page.request import Chosen, Request, Served
from page.visits import Visits
from page.words import LANGUAGES, WORDS, language_of, say, translations
from page.work import Outcome, Work, line_html
from system.errors import DataError

SERVED = Served(Path("final"), None, ("pose",), 8.0, 1, {}, {})
SILENT = "a.mp4: is silent; mend it"
REQUEST = Request(Chosen(Path("me.png")), "song", Chosen(Path("song.mp3")))


@dataclass
class Made:
    paths: list
    summary: str = "8 frames"
    seconds: float = 3.0
    notes: tuple = ("the pose jumps",)


def run(tmp_path, sample, show=lambda *_: None, language="en") -> Outcome:
    return Work(sample, SERVED, Visits(tmp_path)).run(REQUEST, "visit", language, show)


def test_a_job_shows_how_far_it_is_and_hands_over_its_videos(tmp_path):
    shown = []

    def sample(flags, on_progress):
        output = Path(flags[flags.index("--output") + 1])
        assert output.parent.is_dir() and tmp_path in output.parents
        for done in range(3):
            on_progress("sampling", done, 2)
        return Made([output, output.with_name("panel.mp4")])

    outcome = run(tmp_path, sample, lambda *step: shown.append(step))
    assert (outcome.line, outcome.notes) == ("Made in 3 s: 8 frames.", ("note: the pose jumps",))
    assert outcome.video.suffix == ".mp4" and outcome.panel.name == "panel.mp4" and not outcome.is_error
    assert shown == [("preparing", 0, 0), *((f"sampling: {done} of 2", done, 2) for done in range(3))]


def test_a_job_stops_within_a_step(tmp_path):
    visits, steps = Visits(tmp_path), []

    def sample(flags, on_progress):
        for done in range(10):
            steps.append(done)
            if done == 3:
                visits.stop("visit")
            on_progress("sampling", done, 10)

    outcome = Work(sample, SERVED, visits).run(REQUEST, "visit", "ko", lambda *_: None)
    assert steps == [0, 1, 2, 3] and outcome == Outcome(say("ko", "stopped"))


@pytest.mark.parametrize(
    "error, line",
    [
        (lambda folder: DataError(folder / "x" / "a.mp4", "is silent", "mend it"), SILENT),
        (lambda folder: KeyError("secret"), say("en", "unexpected")),
        (lambda folder: MemoryError(), say("en", "unexpected")),
    ],
)  # fmt: skip
def test_an_error_is_one_line_without_a_stack(tmp_path, capsys, error, line):
    def sample(flags, on_progress):
        raise error(tmp_path)

    outcome = run(tmp_path, sample)
    assert outcome == Outcome(line, is_error=True)
    assert ("Traceback" in capsys.readouterr().err) == (line == say("en", "unexpected"))


def test_lines_are_text_whatever_is_in_them():
    shown = line_html(Outcome("<script>alert(1)</script>", ("a & b",), is_error=True))
    assert "<script>" not in shown and "a &amp; b" in shown and 'class="line error"' in shown


def test_the_time_left_is_measured_part_by_part_after_the_first_step():
    times = iter([0.0, 30.0, 31.0, 34.0, 90.0, 91.0])
    remaining = Remaining("en", clock=lambda: next(times))
    assert remaining.words("sampling", 0, 100) == "sampling: 0 of 100"
    assert remaining.words("sampling", 1, 100) == "sampling: 1 of 100"
    assert remaining.words("sampling", 2, 100) == "sampling: 2 of 100"  # a second tells little
    assert remaining.words("sampling", 5, 100) == "sampling: 5 of 100, about 95 s left"
    assert remaining.words("writing", 0, 2) == "writing: 0 of 2"
    assert remaining.words("another thing", 1, 2) == "another thing: 1 of 2"


def test_the_browser_chooses_the_language():
    assert language_of({"accept-language": "ko-KR,ko;q=0.9,en;q=0.8"}) == "ko"
    assert language_of({"accept-language": "fr, en-GB;q=0.5, ko;q=0.2"}) == "en"
    assert language_of({"accept-language": "fr"}) == language_of({}) == "en"
    assert say("ko", "step", part="가", done=1, total=2) == "가: 1 / 2"


def test_both_languages_say_everything():
    words = translations(megabytes=5, video="x")
    assert words["en"].keys() == words["ko"].keys()
    assert "page_no_own_video" in words["en"] and "page_no_own_song" not in words["en"]
    assert "5 MB" in words["ko"]["page_limits"]
    assert all(len(pair) == len(LANGUAGES) and all(pair) for pair in WORDS.values())


def test_every_word_is_used():
    folder = Path(__file__).parents[2] / "page"
    code = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py") if path.stem != "words")
    kinds = {f"{start}{kind}" for start in ("no_", "no_own_") for kind in ("image", "video", "song")}
    parts = {"sampling", "writing", "finding the poses", "step", "left", "second", "minute"}
    known = kinds | parts | {"weight_pose", "weight_music", "fit_trained", "fit_crop", "fit_pad"}
    assert [key for key in WORDS if key not in known and f'"{key}"' not in code] == []
