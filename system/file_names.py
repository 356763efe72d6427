"""Names that a file cannot have on Windows: where data is prepared there, and where it may be taken to."""

import os
from pathlib import Path

PORTS = (f"{port}{digit}" for port in ("COM", "LPT") for digit in "123456789")
RESERVED = {"CON", "PRN", "AUX", "NUL", *PORTS}
MAX_PATH = 259  # characters, without the zero at the end
LONGEST_TAIL = len("/reference_images/") + len("_000.png")  # of a sample's files, beside its name


def windows_problem(name: str) -> str | None:
    """Return why no folder can have this name on Windows, or None."""
    if name.split(".")[0].rstrip().upper() in RESERVED:
        return f"its name is reserved on Windows ({name.split('.')[0].rstrip()})"
    if name.endswith((".", " ")):
        last = "dot" if name[-1] == "." else "space"
        return f"its name without the ending ends with a {last}, which Windows drops"
    letters = sorted({letter for letter in name if letter in '<>:"/\\|?*' or ord(letter) < 32})
    return f"its name has {' '.join(map(ascii, letters))}, which Windows does not allow" if letters else None


def long_path_problem(name: str, output_dir: Path) -> str | None:
    """Return why Windows would not take a sample's longest path, or None; other systems take longer ones."""
    length = len(os.path.abspath(output_dir / ".prepare_guidance" / name)) + len(name) + LONGEST_TAIL
    if length <= MAX_PATH:
        return None
    return f"its sample's paths have up to {length} characters, Windows takes {MAX_PATH}"
