"""What lies in a folder and is not taken: counted and named, so that nothing is left out in silence."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SYSTEM_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "lost+found",
                "$recycle.bin", "system volume information"}  # fmt: skip
MAX_NAMED = 5

HIDDEN = "is hidden, or a system's own"
NO_VIDEO = "belongs to no video"
NO_TRACK = "belongs to no pose and no music"
NO_ENDING = "is not read: no known ending"
FOLDER = "is a folder, and not looked into"


class Unread(NamedTuple):
    """An entry that is not taken. reason: goes on after its name."""

    path: Path
    reason: str


def is_hidden(name: str) -> bool:
    """Return whether an entry is a system's: hidden, such as AppleDouble's ._dance.mp4, or Thumbs.db."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def unread_lines(unread: Iterable[Unread], root: Path, levels: int = 1) -> list[str]:
    """Return a line for each reason and folder, the first `levels` folders below root apart.

    Of reasons that differ in what follows a semicolon, as sub-folders' do, the first MAX_NAMED have a line.
    """
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path, reason in unread:
        inside = path.relative_to(root).parent.parts[:levels]
        groups[root.joinpath(*inside), reason].append(path)
    lines, num_alike = [], Counter()
    others: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for (folder, reason), paths in sorted(groups.items()):
        alike = folder, reason.partition("; ")[0]
        num_alike[alike] += 1
        if num_alike[alike] <= MAX_NAMED:
            lines.append(_line(folder, reason, paths))
        else:
            others[alike] += paths
    return lines + [_line(folder, reason, paths) for (folder, reason), paths in sorted(others.items())]


def _line(folder: Path, reason: str, paths: list[Path]) -> str:
    if len(paths) == 1:
        return f"{paths[0]} {reason}"
    names = ", ".join(os.fspath(path.relative_to(folder)) for path in sorted(paths)[:MAX_NAMED])
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    verb, rest = reason.split(" ", 1)
    verb = {"is": "are", "belongs": "belong", "holds": "hold"}[verb]
    return f"{len(paths)} entries of {folder} {verb} {rest}: {names}{more}"
