"""What a job says while it works: notes for the user, and how far it is."""

from collections.abc import Callable
from dataclasses import dataclass, field

OnProgress = Callable[[str, int, int], object]  # (what is being done, done, of all); may raise Cancelled


@dataclass
class Report:
    """Notes are printed at once, and kept."""

    on_progress: OnProgress = lambda text, done, total: None
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)
        print(f"note: {text}")
