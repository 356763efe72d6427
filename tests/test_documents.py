"""Documents, launchers and configurations agree with the code: flags, defaults, files, examples that run."""

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from training.execution.launch import check_packages
from training.settings.parsing import ALIASES, FLAGS, default_of, parse_arguments

REPOSITORY = Path(__file__).resolve().parents[1]
GUIDES = {  # and each one's word for a flag without a default
    REPOSITORY / "README_GUIDANCE_TRAINING.md": "필수",
    REPOSITORY / "docs/guide.md": "required",
}
GUIDE = next(iter(GUIDES))  # whose examples run; the other has the same ones
README = REPOSITORY / "README.md"
DOCUMENTS = (README, *GUIDES)
RESULTS = tuple(REPOSITORY / "benchmarks" / name for name in ("RESULTS.md", "DROPPED.md"))
CONFIGS = sorted(REPOSITORY.glob("configs/*.yaml"))
TRAINING_FLAGS = {f"--{name}" for name in (*FLAGS, *ALIASES, "config", "help")}
LAUNCHER_FLAGS = {"--machine_rank", "--standalone", "--nproc_per_node"}  # accelerate's and torch's
TRAINING_SCRIPTS = ("train_guidance.py", "command_train_guidance.sh", "command_train_guidance.bat")
PACKAGES = "|".join(path.parent.name for path in REPOSITORY.glob("*/__init__.py"))
OTHER_FOLDERS = ("assets", "configs", "configs/accelerate", "docs", "tests")  # without modules of their own
FLAG = re.compile(r"--[a-z][a-z0-9_]*")

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


def training_arguments(document: Path) -> list[list[str]]:
    """The arguments that reach train_guidance.py in each training command of the document."""
    return [resolved(*command) for command in script_commands(document, *TRAINING_SCRIPTS)]


def resolved(script: str, arguments: list[str]) -> list[str]:
    """Return the arguments that reach train_guidance.py by a launcher or at once."""
    if not script.startswith("command"):
        return arguments
    config = "demo" if arguments[:1] == ["demo"] else "train_guidance"
    return ["--config", f"configs/{config}.yaml", *arguments[config == "demo" :]]


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
@pytest.mark.parametrize("script", ["sample_guidance", "prepare_guidance", "evaluate_guidance"])
def test_commands_of_the_other_scripts_are_accepted(document, script):
    found = script_commands(document, f"{script}.py")
    assert found
    for _, arguments in found:
        importlib.import_module(script).build_parser().parse_args(arguments)


@each_document
def test_every_flag_in_the_text_exists(document):
    scripts = ("sample_guidance", "prepare_guidance", "evaluate_guidance")
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
@pytest.mark.parametrize(
    "script, chapter", [("sample_guidance", "12"), ("prepare_guidance", "4"), ("evaluate_guidance", "17")]
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
    arguments = parse_arguments(["--config", str(config)])
    values = yaml.safe_load(config.read_text(encoding="utf-8"))
    assert values and {name for name, value in values.items()
                       if getattr(arguments, name) not in (value, [value])} == set()


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
    pattern = re.compile(rf"(?:{PACKAGES}|assets|benchmarks|configs|docs|scripts|tests|\.ci)/[\w./-]*|"
                         r"(?:command_|requirements|train_|sample_|prepare_|evaluate_)[\w.-]+\.(?:py|sh|bat|txt)")
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


# -- The guides say the same


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


# -- The guide's examples run


def example_files() -> dict[str, str]:
    """{file name: text} of the guide's Python blocks that begin with their file's name."""
    blocks = fenced_blocks(GUIDE, "python")
    return {match[1]: block for block in blocks if (match := re.match(r"# (\w+\.py)\n", block))}


@pytest.fixture
def example_dir(tmp_path, monkeypatch):
    """A folder with the guide's example files, a small demo data set, the repository's configs and assets."""
    from demo.data import main as make_demo_data

    for name, text in example_files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("configs", "assets"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    options = ["--num_train", "2", "--num_validation", "2", "--num_workers", "1"]
    assert make_demo_data(["--output_dir", str(tmp_path / "demo_data"), *options]) == 0
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merge_flags(*commands: list[str]) -> list[str]:
    """One command line with the flags of all; a flag given again has its last value."""
    values: dict[str, list[str]] = {}
    for arguments in commands:
        flag = None
        for word in arguments:
            if word.startswith("--"):
                flag = word
                values[flag] = []
            else:
                values[flag].append(word)
    return [word for flag, words in values.items() for word in (flag, *words)]


def test_custom_type_and_custom_loss_examples_train(example_dir):
    """The guide's data script, encoder and loss in one short run, as its own commands start them."""
    for words in commands(GUIDE):
        if words[1:2] == ["make_energy.py"]:
            subprocess.run([sys.executable, *words[1:]], check=True)
    words = [word.rpartition("=")[2] for path in DOCUMENTS for command in commands(path) for word in command]
    assert [word for word in words if word.startswith("demo_data/") and not Path(word).exists()] == []
    examples = [
        arguments
        for _, arguments in script_commands(GUIDE, "train_guidance.py")
        if {"--guidance_modules", "--loss"} & set(arguments)
    ]
    assert len(examples) == 2
    short = "--max_train_steps 2 --lr_warmup_steps 0 --validation_steps 2 --num_validation_clips 2"
    short += " --num_inference_steps 1 --resolution 64 --sequence_length 2 --train_batch_size 1"
    short += " --num_workers 0"
    arguments = merge_flags(*examples, shlex.split(short))
    command = [sys.executable, str(REPOSITORY / "train_guidance.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    final_dir = example_dir / arguments[arguments.index("--output_dir") + 1] / "final"
    assert (final_dir / "model_index.json").is_file()
    check_energy_was_trained(example_dir, final_dir)


def check_energy_was_trained(example_dir: Path, final_dir: Path) -> None:
    """The model needs the user's module to load, learned something from the type, and samples with it."""
    import sample_guidance
    from models import ChampModel, ModelError, guidance_encoder

    with pytest.raises(ModelError, match="--guidance_modules"):
        ChampModel.from_pretrained(final_dir)
    sampling = next(arguments for _, arguments in script_commands(GUIDE, "sample_guidance.py")
                    if "--guidance_modules" in arguments)  # fmt: skip
    short = ["--num_inference_steps", "1", "--num_frames", "2", "--model_path", str(final_dir)]
    try:
        assert sample_guidance.main([*sampling, *short]) == 0
        encoders = ChampModel.from_pretrained(final_dir).guidance_encoders
    finally:
        guidance_encoder._REGISTRY.pop("energy", None)
    assert (example_dir / sampling[sampling.index("--output") + 1]).is_file()
    parameters = list(encoders.projections["energy"].parameters() if "energy" in encoders.projections
                      else encoders.encoders["energy"].linear_out.parameters())  # fmt: skip
    assert any(parameter.any() for parameter in parameters)  # a projection starts at zero


def load_file(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_spatial_encoder_example(tmp_path):
    from models import create_guidance_encoders, guidance_encoder

    (tmp_path / "my_depth.py").write_text(example_files()["my_depth.py"], encoding="utf-8")
    load_file(tmp_path / "my_depth.py")
    try:
        encoder = create_guidance_encoders(["inverse_depth"], [3], 64)["inverse_depth"]
        torch.nn.init.normal_(encoder.conv_out.weight)
        far, near = (encoder(torch.full((1, 2, 3, 32, 32), value)) for value in (0.0, 1.0))
    finally:
        del guidance_encoder._REGISTRY["inverse_depth"]
    assert far.shape == (1, 2, 64, 4, 4) and not torch.equal(far, near)


def loss_examples() -> list[str]:
    blocks = [block for document in DOCUMENTS for block in fenced_blocks(document, "python")]
    return [block for block in blocks if "def custom_loss" in block]


@pytest.mark.parametrize("block", loss_examples())
def test_loss_example(block):
    names: dict = {}
    exec(block, names)
    target = torch.zeros(2, 3, 4, 8, 8)
    prediction = torch.rand(2, 3, 4, 8, 8, requires_grad=True)
    guidance = {"pose": torch.rand(2, 3, 134, 3)}
    loss = names["custom_loss"](prediction, target, guidance)
    loss.backward()
    assert loss.ndim == 0 and loss > 0 and prediction.grad.any()
    constant = torch.ones_like(prediction)  # an error that does not change over the frames
    assert names["custom_loss"](constant, target, guidance) == 0
    assert names["custom_loss"](constant[:, :1], target[:, :1], {}) == 0


def test_readme_vector_encoder_example():
    from models import create_guidance_encoders, guidance_encoder

    blocks = fenced_blocks(REPOSITORY / "README.md", "python")
    exec(next(block for block in blocks if "register_guidance_encoder" in block), {})
    try:
        encoder = create_guidance_encoders(["emotion"], [5], 64)["emotion"]
    finally:
        del guidance_encoder._REGISTRY["emotion"]
    assert encoder.guidance_kind == "vector" and encoder(torch.rand(2, 3, 5)).shape == (2, 3, 64)


@pytest.fixture
def registries(monkeypatch):
    """Forget, after the test, what its example registers."""
    from evaluation import validation_metrics
    from models import guidance_encoder

    monkeypatch.setattr(guidance_encoder, "_REGISTRY", dict(guidance_encoder._REGISTRY))
    monkeypatch.setattr(validation_metrics, "_METRICS", dict(validation_metrics._METRICS))


@each_document
def test_metric_example(document, registries):
    from evaluation import validation_metrics

    names: dict = {}
    blocks = fenced_blocks(document, "python")
    exec(next(block for block in blocks if "register_validation_metric" in block), names)
    sampled = torch.zeros(3, 3, 8, 8)
    sampled[1] = 1
    run = validation_metrics.ValidationRun(None, None, [], 1, {}, sample=lambda shown: sampled)
    assert validation_metrics._METRICS["flicker"](run) == {"flicker": 1.0}


def test_readme_python_examples_run_in_order(example_dir, registries):
    """The chapter's blocks as they stand, with the demo's data and a model that has learned nothing."""
    from models import ChampModel, FrozenEncoders, create_guidance_encoders
    from pipelines.champ_pipeline import ChampPipeline
    from training.objective import make_noise_scheduler

    encoders = create_guidance_encoders(["music", "pose"], [35, 134], 128)
    model = ChampModel.from_pretrained_sd("assets/tiny_base", encoders)
    frozen = FrozenEncoders.from_pretrained("assets/tiny_base")
    ChampPipeline.from_parts(
        model, frozen, make_noise_scheduler("v_prediction"), height=128, width=128, sequence_length=8,
        frame_rate=8.0,
    ).save_pretrained("demo_output/final")  # fmt: skip

    names: dict = {}
    for block in fenced_blocks(README, "python"):
        if block in README.read_text(encoding="utf-8").split("\n## From Python\n")[1]:
            exec(block, names)
    assert names["frames"].shape == names["result"].frames[0].shape == (8, 128, 128, 3)
    assert Path("dance.mp4").stat().st_size > 0
    assert names["prediction"].shape == names["latents"].shape and names["prediction"].isfinite().all()
    assert ChampModel.from_pretrained("my_model").guidance_encoders.guidance_types == ["pose", "speed"]
