"""Threads wait as system/waiting.py says, in every script, unless the user has set a policy."""

from system.waiting import CHOSEN_BY_USER, POLICY

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NO_PROGRAM = re.compile(r"(\.|tests$)")
COMPUTES_NOTHING = {"datasets/demo_data.py", "scripts/launch.py", "scripts/set_up.py"}
# The script that starts them hands both sides its own.
POLICY_OF_STARTER = {
    "benchmarks/step/champ_original_step.py", "benchmarks/sample/champ_original_sample.py"
}  # fmt: skip
SCRIPTS = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for folder in REPOSITORY.iterdir()
    if not NO_PROGRAM.match(folder.name)
    for path in ([folder] if folder.suffix == ".py" else folder.rglob("*.py"))
    if "\nif __name__ ==" in path.read_text(encoding="utf-8")
)


def run_python(code: str, **environment: str) -> str:
    """Return what Python prints for the code, in an environment without a policy but for `environment`."""
    kept = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY_USER}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=kept | environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    return result.stdout


def policy_after(code: str, **environment: str) -> dict[str, str]:
    show = f"import os; print({{name: os.environ[name] for name in {CHOSEN_BY_USER} if name in os.environ}})"
    return ast.literal_eval(run_python(f"{code}\n{show}", **environment))


def test_a_policy_is_set_where_there_is_none():
    assert policy_after("import system.waiting") == POLICY


@pytest.mark.parametrize("name", sorted(CHOSEN_BY_USER))
def test_the_users_policy_is_kept(name):
    assert policy_after("import system.waiting", **{name: "7"}) == {name: "7"}


def test_nothing_is_set_once_torch_is_loaded():
    assert policy_after("import torch, system.waiting") == {}


def test_the_runtime_of_torch_takes_it():
    told = run_python(
        "import system.waiting, torch; torch.ones(1 << 20).exp()", OMP_DISPLAY_ENV="verbose",
        OMP_NUM_THREADS="2",
    )  # fmt: skip
    if "GOMP_SPINCOUNT" in told:
        assert f"GOMP_SPINCOUNT = '{POLICY['GOMP_SPINCOUNT']}'" in told
    else:
        assert re.search(r"KMP_BLOCKTIME\s*=\s*'?1\b", told), told


def test_the_scripts_are_found():
    assert {"train_guidance.py", *COMPUTES_NOTHING, *POLICY_OF_STARTER} <= {*SCRIPTS}


@pytest.mark.parametrize("script", sorted({*SCRIPTS} - COMPUTES_NOTHING - POLICY_OF_STARTER))
def test_every_script_imports_it_before_torch(script):
    body = ast.parse((REPOSITORY / script).read_text(encoding="utf-8")).body
    names = [
        name
        for node in body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
    ]
    first = next(name for name in names if name.split(".")[0] not in sys.stdlib_module_names)
    assert first == "system.waiting"
