"""The two guides say the same, section by section."""

import re
from pathlib import Path

import pytest

from .reading import GUIDES, prose


def sections(document: Path) -> list[str]:
    """Return the text from each heading to the next; a comment in a fenced block is no heading."""
    found, fenced = [""], False
    for line in document.read_text(encoding="utf-8").splitlines(keepends=True):
        fenced ^= line.startswith("```")
        if not fenced and re.match("#+ ", line):
            found.append("")
        found[-1] += line
    return found[1:]


def heading(section: str) -> tuple[str, str]:
    return re.match(r"(#+) (\d*)", section).groups()


def blocks(section: str) -> list[str]:
    """Return the fenced blocks but for comments, docstrings and the notes beside a tree of files."""
    spoken = re.compile(r'(?<=""").+(?=""")|(?<=\S) +# .*|(?<=^[├└]── )(\S+).*', re.M)
    return [spoken.sub(r"\1", block) for block in re.findall(r"^```.*?^```", section, re.M | re.S)]


def names(text: str) -> set[str]:
    """Return all that stands in code quotes: flags, files, scalars, values."""
    return {" ".join(name.split()) for name in re.findall(r"`([^`]+)`", prose(text))}


def tables(section: str) -> list[list[tuple]]:
    """Return the names in each cell and, of a cell that begins with a digit, its numbers."""
    rows = [line[2:].split(" | ") for line in section.splitlines() if line.startswith("| ")]
    return [[(names(cell), re.findall(r"[\d.+]+", cell) if cell[0].isdigit() else []) for cell in row]
            for row in rows]  # fmt: skip


def links(section: str) -> set[str]:
    """Return the addresses, the names of files and the numbers of chapters that are linked to."""
    targets = re.findall(r"\]\(([^)]+)\)", section)
    return {re.sub(r"#(\d+)-.*", r"\1", target if "://" in target else Path(target).name)
            for target in targets} - {guide.name for guide in GUIDES}  # fmt: skip


@pytest.mark.parametrize("read", [heading, blocks, names, tables, links])
def test_guides_say_the_same(read):
    """Section by section: headings, commands and examples, flags, files, scalars, tables, links."""
    korean, english = map(sections, GUIDES)
    assert len(korean) == len(english) > 17
    for expected, found in zip(korean, english, strict=True):
        assert read(found) == read(expected), found.splitlines()[0]
