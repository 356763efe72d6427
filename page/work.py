"""One job of the page: flags of a request in, videos or one line out."""

import html
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import VideoReader
from system.errors import Cancelled, RunError, UserError

from .progress import Remaining
from .request import Request, Served, flags_of
from .uploads import hide_folders
from .visits import Visits
from .words import duration, say

Progress = Callable[[str, int, int], None]  # (text, done, total)


@dataclass(frozen=True)
class Outcome:
    """What a job leaves: the video and the panel, or neither; and a line about it."""

    line: str
    notes: tuple[str, ...] = ()
    is_error: bool = False
    video: Path | None = None
    panel: Path | None = None


def line_html(outcome: Outcome) -> str:
    """Return a line as HTML; whatever is in it, it is text."""
    kind = "error" if outcome.is_error else "note"
    words = "<br>".join(map(html.escape, (outcome.line, *outcome.notes)))
    return f'<div class="line {kind}" role="status">{words}</div>'


class Work:
    """The jobs of all visits, one at a time.

    sample(flags, on_progress) makes the videos of a command line of sample_guidance.py, as sample_video does.
    """

    def __init__(self, sample: Callable, served: Served, visits: Visits) -> None:
        self.sample, self.served, self.visits = sample, served, visits

    def run(self, request: Request, visit: str, language: str, show: Progress) -> Outcome:
        """Return the outcome; show(words, done, total) is told how far it is."""
        try:
            with self.visits.job(visit) as stop:
                return self._sample(request, visit, language, lambda *step: self._step(stop, show, *step))
        except Cancelled:
            return Outcome(say(language, "stopped"))
        except (UserError, RunError) as error:
            return Outcome(hide_folders(str(error), self.visits.root), is_error=True)
        except Exception:  # the page goes on; the terminal has the reason
            traceback.print_exc(file=sys.stderr)
            return Outcome(say(language, "unexpected"), is_error=True)

    @staticmethod
    def _step(stop, show: Progress, words: str, done: int, total: int) -> None:
        if stop.is_set():
            raise Cancelled
        show(words, done, total)

    def _sample(self, request: Request, visit: str, language: str, step: Progress) -> Outcome:
        remaining = Remaining(language)
        step(say(language, "preparing"), 0, 0)
        folder = Path(tempfile.mkdtemp(dir=self.visits.folder(visit)))
        notes = ()
        if request.needs_sound and not VideoReader(request.dance.path).has_audio:
            request, notes = replace(request, is_heard=False), (say(language, "silent"),)
        flags = flags_of(request, self.served, folder / "generated.mp4")

        def on_progress(text: str, done: int, total: int) -> None:
            step(remaining.words(text, done, total), done, total)

        sampled = self.sample(flags, on_progress)
        made = say(language, "made", time=duration(language, sampled.seconds), summary=sampled.summary)
        notes += tuple(hide_folders(f"note: {note}", self.visits.root) for note in sampled.notes)
        return Outcome(made, notes, video=sampled.paths[0], panel=next(iter(sampled.paths[1:]), None))
