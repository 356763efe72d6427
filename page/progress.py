"""How far a job is, in words with the time left."""

import time

from .words import duration, part, say

FIRST_ESTIMATE_SECONDS = 2.0  # before, the time left is a guess


class Remaining:
    """Each part of a job is measured by itself; the first step, which warms up, does not count."""

    def __init__(self, language: str, clock=time.monotonic) -> None:
        self._language, self._clock = language, clock
        self._part, self._since, self._done = None, 0.0, 0

    def words(self, text: str, done: int, total: int) -> str:
        """Return "sampling: 3 of 25, about 40 s left"."""
        now = self._clock()
        if text != self._part or self._done == 0:
            self._part, self._since, self._done = text, now, done
        words = say(self._language, "step", part=part(self._language, text), done=done, total=total)
        passed, more = now - self._since, done - self._done
        if more <= 0 or passed < FIRST_ESTIMATE_SECONDS or done >= total:
            return words
        left = duration(self._language, passed / more * (total - done))
        return f"{words}, {say(self._language, 'left', time=left)}"
