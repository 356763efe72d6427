"""What a check of a data folder found: faults, one line each, and facts of every sample; kept as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from system.errors import DataError


@dataclass(frozen=True)
class Fault:
    """One fault: the file, what is wrong, what to do.

    An error is what reading would stop at, or what leaves nothing to learn from; a warning is read as it
    stands.
    """

    sample_id: str  # "" for a fault of the whole folder
    path: str
    problem: str
    fix: str
    severity: str = "error"  # or "warning"

    @classmethod
    def of(cls, error: DataError, sample_id: str = "") -> Fault:
        return cls(sample_id, error.path, error.problem, error.fix)

    def __str__(self) -> str:
        return str(DataError(self.path, self.problem, self.fix))


@dataclass
class DataReport:
    """What a check found. samples: {sample id: facts such as frames, rows and coordinates}."""

    data_root: str
    faults: list[Fault] = field(default_factory=list)
    samples: dict[str, dict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict = field(default_factory=dict)  # check_data's, but for the folder
    decoded: bool = True  # every frame, or the first and the last of each video
    fingerprint: str = ""  # of the folder and the settings; see folder_fingerprint.py
    num_unread: int = 0  # entries of the folder that are not taken; the notes name them
    num_listed: int = 0  # of these, seen by listing the folder alone
    listed: list[str] = field(default_factory=list)  # the notes on them
    reused: bool = False  # an earlier report that still holds; not stored

    @property
    def errors(self) -> list[Fault]:
        return [fault for fault in self.faults if fault.severity == "error"]

    @property
    def errors_first(self) -> list[Fault]:
        return sorted(self.faults, key=lambda fault: fault.severity != "error")

    @property
    def ok(self) -> bool:
        """No fault of any kind."""
        return not self.faults

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """(sample id, first error) of the samples that --skip_invalid leaves out, sorted."""
        reasons: dict[str, str] = {}
        for fault in self.errors:
            if fault.sample_id:
                reasons.setdefault(fault.sample_id, str(fault))
        return sorted(reasons.items())

    @property
    def has_usable_samples(self) -> bool:
        """Whether anything is left to train on without the faulty samples: never with a faulty folder."""
        if any(not fault.sample_id for fault in self.errors):
            return False
        return len(self.left_out) < len(self.samples)

    def count(self) -> str:
        """Return the last line of the summary: how many samples and faults."""
        faulty = len({fault.sample_id for fault in self.faults} - {""})
        faults = f"{len(self.faults)} fault{'s' * (len(self.faults) != 1)}" if self.faults else "no faults"
        where = f" in {faulty} of them" if faulty else ""
        samples = f"{len(self.samples)} sample{'s' * (len(self.samples) != 1)}"
        entries = f"{self.num_unread} {'entry' if self.num_unread == 1 else 'entries'}"
        unread = f", {entries} not read" if self.num_unread else ""
        return printable(f"{self.data_root}: {samples} checked, {faults}{where}{unread}")

    def lines(self, limit: int | None = None) -> list[str]:
        """Return one line per fault, errors first."""
        return [printable(f"{fault.severity}: {fault}") for fault in self.errors_first[:limit]]

    def summary(self) -> str:
        """Return one line per fault, then what was read and how."""
        notes = [printable(f"note: {note}") for note in self.notes]
        return "\n".join([*self.lines(), *notes, self.count()])

    def write(self, path: str | Path) -> None:
        """Write the report as JSON."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "data_root": self.data_root, "ok": self.ok, "num_samples": len(self.samples),
            "num_errors": len(self.errors), "num_warnings": len(self.faults) - len(self.errors),
            "faults": [asdict(fault) for fault in self.faults], "notes": self.notes,
            "settings": self.settings, "decoded": self.decoded, "fingerprint": self.fingerprint,
            "num_unread": self.num_unread, "num_listed": self.num_listed, "listed": self.listed,
        }  # fmt: skip
        head = json.dumps(content, indent=1, ensure_ascii=False)
        with path.open("w", encoding="utf-8") as file:
            file.write(printable(head.removesuffix("\n}") + ',\n "samples": {'))
            for number, (sample_id, facts) in enumerate(self.samples.items()):  # one line each, of very many
                words = (json.dumps(value, ensure_ascii=False) for value in (sample_id, facts))
                file.write(printable(("," if number else "") + "\n  " + ": ".join(words)))
            file.write("\n }\n}\n")


def read_report(path: str | Path) -> DataReport | None:
    """Return the report that DataReport.write left there; None without one of this version."""
    try:
        content = json.loads(Path(path).read_bytes())
        return DataReport(
            content["data_root"], [Fault(**fault) for fault in content["faults"]], content["samples"],
            content["notes"], content["settings"], content["decoded"], content["fingerprint"],
            content["num_unread"], content["num_listed"], content["listed"],
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):  # half-written by a run that was killed, or older
        return None


def printable(text: str) -> str:
    """Return the text with bytes that are no UTF-8, as file names may have, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
