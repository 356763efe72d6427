"""The documents, and what is read out of them: fenced blocks, commands."""

import re
import shlex
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDES = {  # and each one's word for a flag without a default
    REPOSITORY / "README_GUIDANCE_TRAINING.md": "필수",
    REPOSITORY / "docs/guide.md": "required",
}
GUIDE = next(iter(GUIDES))  # whose examples run; the other has the same ones
README = REPOSITORY / "README.md"
DOCUMENTS = (README, *GUIDES)
TRAINING_SCRIPTS = ("train_guidance.py", "command_train_guidance.sh", "command_train_guidance.bat")
PACKAGES = "|".join(path.parent.name for path in REPOSITORY.glob("*/__init__.py"))
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
each_guide = pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)


def fenced_blocks(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.M | re.S)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def commands(document: Path) -> list[list[str]]:
    """The words of every command in the document's shell blocks, without comments and environment."""
    found = []
    for block in fenced_blocks(document, "(?:bash|bat)"):
        for line in block.replace("\\\n", " ").splitlines():
            words = [word for word in shlex.split(line, comments=True) if not re.match(r"[A-Z_]+=", word)]
            if words:
                found.append(words)
    return found


def script_commands(document: Path, *names: str) -> list[tuple[str, list[str]]]:
    """(script, what follows it) for every command that runs one of the scripts."""
    found = []
    for words in commands(document):
        place = next((place for place, word in enumerate(words) if word in names), None)
        if place is not None:
            found.append((words[place], words[place + 1 :]))
    return found


def resolved(script: str, arguments: list[str]) -> list[str]:
    """Return the arguments that reach train_guidance.py by a launcher or at once."""
    if not script.startswith("command"):
        return arguments
    config = "demo" if arguments[:1] == ["demo"] else "train_guidance"
    return ["--config", f"configs/{config}.yaml", *arguments[config == "demo" :]]
