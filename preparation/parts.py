"""One part of the videos, for one of many machines: `--shard 3/16` prepares a sixteenth of them.

A video belongs to a part by its name alone, so that videos that come or go move no other. All parts write
into one data folder, each under its own lock; what became of a part's videos is in its manifest. Whether all
is there is told by the samples themselves; manifests say why something is not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.guidance.files import load_json
from system.errors import ConfigError, DataError
from system.whole_files import whole_file

MANIFEST_FOLDER = ".prepare_guidance_parts"  # in the output folder; hidden, so that it is no data
MAX_NAMED = 5


@dataclass(frozen=True)
class Part:
    """The number-th of `count` parts, from 1 on."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Return the part "3/16". Raises ConfigError."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise ConfigError(f"--shard {text}: expected I/N, part I of N, such as 1/16 to 16/16")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, name: str) -> bool:
        """Return whether the video of this name (Source.name) is this part's."""
        return part_number(name, self.count) == self.number

    @property
    def file_name(self) -> str:
        return f"{self.number}_of_{self.count}"


def part_number(name: str, count: int) -> int:
    """Return which of `count` parts a video of this name belongs to."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % count + 1


@dataclass(frozen=True)
class Manifest:
    """What a part said last. faults: {Source.name: what is wrong}, of those that failed."""

    part: Part
    is_finished: bool
    num_videos: int
    host: str
    faults: dict[str, str]


def write_manifest(
    output_dir: Path, part: Part, num_videos: int, faults: Iterable[DataError] | None = None
) -> None:
    """Say that a part has begun (faults: None), or what became of its videos."""
    path = output_dir / MANIFEST_FOLDER / f"{part.file_name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "shard": str(part), "finished": faults is not None, "videos": num_videos,
        "host": socket.gethostname(), "faults": {name_of(fault): str(fault) for fault in faults or ()},
    }  # fmt: skip
    with whole_file(path) as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def name_of(fault: DataError) -> str:
    """Return the Source.name that a fault belongs to: of a video, or of the sound beside it."""
    return unicodedata.normalize("NFC", Path(fault.path).stem)


def read_manifests(output_dir: Path) -> list[Manifest]:
    """Return the parts' manifests, in order; one that is none is left out, as if its part had not begun."""
    found = []
    for path in (output_dir / MANIFEST_FOLDER).glob("*_of_*.json"):
        with contextlib.suppress(DataError, ConfigError, KeyError, TypeError):
            content = load_json(path)
            part, faults = Part.parse(content["shard"]), dict(content["faults"])
            found.append(Manifest(part, content["finished"], content["videos"], content["host"], faults))
    return sorted(found, key=lambda manifest: (manifest.part.count, manifest.part.number))


def missing_lines(output_dir: Path, missing: Sequence[str]) -> list[str]:
    """Return what the user is told of videos (Source.name) that are not prepared, or not wholly.

    A line for each part that did not begin, did not end, or has such videos; each says what to do.
    """
    manifests = read_manifests(output_dir)
    if not manifests:
        line = f"{len(missing)} videos are not prepared ({_some(missing)}): run the command without --merge"
        return [line] if missing else []
    lines, count = [], _count_of_parts(manifests)
    known = {one.part.number: one for one in manifests if one.part.count == count}
    left: dict[int, list[str]] = {}
    for name in missing:
        left.setdefault(part_number(name, count), []).append(name)
    for number in range(1, count + 1):
        lines += _lines_of_part(Part(number, count), known.get(number), left.get(number, []))
    return lines


def _count_of_parts(manifests: Sequence[Manifest]) -> int:
    """Return into how many parts the videos were divided; of several divisions, the one seen most."""
    counts = [manifest.part.count for manifest in manifests]
    return max(set(counts), key=lambda count: (counts.count(count), count))


def _lines_of_part(part: Part, manifest: Manifest | None, left: list[str]) -> list[str]:
    again = f"run it with --shard {part}"
    if manifest is None:
        return [f"part {part} has not begun ({len(left)} of its videos are missing): {again}"] if left else []
    if not manifest.is_finished and left:
        where = f"began on {manifest.host} and did not end"
        return [f"part {part} {where} ({len(left)} of {manifest.num_videos} videos are missing): {again}"]
    unnamed = [name for name in left if name not in manifest.faults]
    lines = [f"part {part}: {manifest.faults[name]}" for name in left if name in manifest.faults]
    return lines + [f"part {part} left out {_some(unnamed)}: {again}"] * bool(unnamed)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:MAX_NAMED]) + (f" and {len(names) - MAX_NAMED} more" * (len(names) > MAX_NAMED))
