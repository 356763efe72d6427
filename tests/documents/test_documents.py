"""Documents, launchers and configurations agree with the code: flags, defaults, files, links."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from training.execution.launch import check_packages
from training.music_to_pose.settings import MusicToPoseArguments, check_arguments
from training.settings.fields import flags_of
from training.settings.parsing import ALIASES, FLAGS, default_of, parse_arguments

from .reading import (
    DOCUMENTS,
    GUIDES,
    PACKAGES,
    README,
    REPOSITORY,
    TRAINING_SCRIPTS,
    commands,
    each_document,
    each_guide,
    fenced_blocks,
    prose,
    resolved,
    script_commands,
)  # fmt: skip

RESULTS = tuple(REPOSITORY / "benchmarks" / name for name in ("RESULTS.md", "DROPPED.md"))
CONFIGS = sorted(REPOSITORY.glob("configs/*.yaml"))
TRAINING_FLAGS = {f"--{name}" for name in (*FLAGS, *ALIASES, "config", "help")}
LAUNCHER_FLAGS = {"--machine_rank", "--standalone", "--nproc_per_node"}  # accelerate's and torch's
OTHER_FOLDERS = ("assets", "configs", "configs/accelerate", "docs", "tests")  # without modules of their own
FLAG = re.compile(r"--[a-z][a-z0-9_]*")


def training_arguments(document: Path) -> list[list[str]]:
    """The arguments that reach train_guidance.py in each training command of the document."""
    return [resolved(*command) for command in script_commands(document, *TRAINING_SCRIPTS)]


# -- Flags and settings


@each_document
def test_training_commands_are_accepted(document, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    found = training_arguments(document)
    assert len(found) >= 8
    for arguments in found:
        parse_arguments(arguments)  # raises what the user would see


@each_document
def test_packages_are_installed_before_they_are_needed(document, monkeypatch):
    """By a flag or by a YAML file: xformers, bitsandbytes, wandb; in the order of the document's commands."""
    monkeypatch.chdir(REPOSITORY)
    installed, num_commands = [], 0
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in installed else None)
    for words in commands(document):
        if words[0] == "pip":
            requirements = Path(words[words.index("-r") + 1]).read_text(encoding="utf-8")
            installed += re.findall(r"^[\w-]+", requirements, re.M)
        place = next((place for place, word in enumerate(words) if word in TRAINING_SCRIPTS), None)
        if place is not None:
            check_packages(parse_arguments(resolved(words[place], words[place + 1 :])))  # or ConfigError
            num_commands += 1
    assert num_commands >= 8 and "xformers" in installed


@each_document
@pytest.mark.parametrize("script", ["sample_guidance", "prepare_guidance", "evaluate_guidance", "app"])
def test_commands_of_the_other_scripts_are_accepted(document, script):
    found = script_commands(document, f"{script}.py")
    assert found
    for _, arguments in found:
        importlib.import_module(script).build_parser().parse_args(arguments)


@each_document
def test_every_flag_in_the_text_exists(document):
    scripts = ("sample_guidance", "prepare_guidance", "evaluate_guidance", "sample_music_to_pose", "app")
    scripts += ("pack_guidance",)
    parsers = [importlib.import_module(script).build_parser() for script in scripts]
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    text = prose(document.read_text(encoding="utf-8"))
    mentioned = {
        flag.replace("--no-", "--")
        for code in re.findall(r"`([^`]+)`", text)
        if not code.startswith(("accelerate ", "docker ", "pip ", "python scripts/launch.py "))
        for flag in re.findall(r"--(?:no-)?[a-z][a-z0-9_]*", code)
        if flag != "--no"
    }
    known |= {f"--{name}" for name in flags_of(MusicToPoseArguments)}
    assert mentioned - TRAINING_FLAGS - LAUNCHER_FLAGS - known == set()


def shown(value) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def flag_table(guide: Path, chapter: str) -> dict[str, str]:
    """Return {flag: default} of the tables in one chapter of the guide."""
    text = guide.read_text(encoding="utf-8").split(f"\n## {chapter}. ")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `--(\w+)` \| `?([^`|]*?)`? \| .+ \|$", text, re.M)
    return dict(rows)


@each_guide
def test_guide_documents_every_training_flag_with_its_default(guide):
    assert flag_table(guide, "6") == {name: shown(default_of(name)) for name in FLAGS}
    text = guide.read_text(encoding="utf-8")
    assert [alias for alias in ALIASES if f"`--{alias}`" not in text] == []


@each_guide
def test_guide_documents_what_is_other_in_the_flags_of_dances(guide):
    kind = MusicToPoseArguments
    defaults = {name: shown(default_of(name, kind)) for name in flags_of(kind)}
    usual = {name: shown(default_of(name)) for name in FLAGS}
    assert flag_table(guide, "18") == dict(defaults.items() - usual.items())


@each_guide
@pytest.mark.parametrize(
    "script, chapter",
    [
        ("sample_guidance", "12"),
        ("prepare_guidance", "4"),
        ("evaluate_guidance", "17"),
        ("sample_music_to_pose", "19"),
        ("app", "20"),
    ],
)
def test_guide_documents_every_other_flag_with_its_default(guide, script, chapter):
    actions = importlib.import_module(script).build_parser()._actions
    assert flag_table(guide, chapter) == {
        action.dest: GUIDES[guide] if action.required else shown(action.default)
        for action in actions
        if action.dest != "help"
    }


@each_guide
def test_guide_names_scalars_that_are_logged(guide):
    chapter = guide.read_text(encoding="utf-8").split("\n## 10. ")[1].split("\n## ")[0]
    first_cells = re.findall(r"^\| (`.+?) \|", chapter, re.M)
    names = {name.split("/")[0] for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
    sources = (REPOSITORY / "train_guidance.py", *REPOSITORY.glob("training/*.py"))
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert len(names) > 10 and [name for name in names if not re.search(rf'"{name}["/]', code)] == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_configuration_is_accepted(config, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    of_dances = {"kind": MusicToPoseArguments, "check": check_arguments}
    arguments = parse_arguments(["--config", str(config)], **(of_dances if "music_to" in config.name else {}))
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    assert (
        values
        and {name for name, value in values.items() if getattr(arguments, name) not in (value, [value])}
        == set()
    )


def test_launchers_name_existing_flags_and_files():
    for name in ("command_train_guidance.sh", "command_train_guidance.bat"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if re.search(r"train_guidance\.py|demo --|--max", line)]
        flags = set(FLAG.findall("\n".join(lines)))
        assert flags and flags <= TRAINING_FLAGS
        for path in re.findall(r"configs/\w+\.yaml", text):
            assert (REPOSITORY / path).is_file()


# -- Files and links


def repository_paths(document: Path) -> set[str]:
    """What the document names in code quotes or shell blocks that looks like a file of this repository."""
    text = document.read_text(encoding="utf-8")
    words = re.findall(r"`([^`\s]+)`", text) + [word for words in commands(document) for word in words]
    pattern = re.compile(
        rf"(?:{PACKAGES}|assets|benchmarks|configs|docs|scripts|tests|\.ci)/[\w./-]*|"
        r"(?:command_|requirements|train_|sample_|prepare_|evaluate_)[\w.-]+\.(?:py|sh|bat|txt)"
    )
    return {word for word in words if pattern.fullmatch(word)}


@pytest.mark.parametrize("document", (*DOCUMENTS, *RESULTS), ids=lambda path: path.name)
def test_named_files_exist(document):
    paths = repository_paths(document)
    assert len(paths) > 5 or document in RESULTS
    assert sorted(path for path in paths if not (REPOSITORY / path).exists()) == []


def test_documents_name_every_folder_of_the_code():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=REPOSITORY, capture_output=True, text=True)
    folders = {Path(name).parent for name in listed.stdout.split()} - {Path(".")}
    folders = {path for path in folders if path.parts[0] != "tests"} | {Path(name) for name in OTHER_FOLDERS}
    tree = README.read_text(encoding="utf-8").split("\n## The code\n")[1].split("\n## ")[0]
    assert [path for path in folders if f"{path.name}/" not in tree] == []
    for guide in GUIDES:
        table = guide.read_text(encoding="utf-8").split("\n## 3. ")[1].split("\n## ")[0]
        assert [path for path in folders if f"| `{path.as_posix()}/`" not in table] == []


@pytest.mark.parametrize("document", (*DOCUMENTS, *RESULTS), ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in anchors, target
        elif not target.startswith("https://"):
            assert (document.parent / target.partition("#")[0]).exists(), target


@each_document
def test_python_examples_parse_and_import(document):
    for block in fenced_blocks(document, "python"):
        compile(block, document.name, "exec")
        for line in re.findall(rf"^from (?:{PACKAGES})\S* import .+$", block, re.M):
            names = {}
            exec(line, names)
            assert names.keys() > {"__builtins__"}, line
