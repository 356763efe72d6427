"""Every fix that a message of the data check proposes, followed: the fault is gone and the data are right.

A case, a generator in advice_cases/, plants a fault in sample dance_001, yields the fix that must be
proposed, and then follows it to the letter. What it yields after that are settings that the fix changes;
ANOTHER says that other data are right.
"""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

from datasets import GuidanceDataset
from tests.datasets.checking.advice_cases import (
    dances,
    files,
    folders,
    key_points,
    planting,
    rates,
    shapes,
    values,
)

REPOSITORY = Path(__file__).parents[3]
ROOMS_OF_CASES = (shapes, rates, files, key_points, values, folders, dances)
CASES = [
    case for room in ROOMS_OF_CASES for case in vars(room).values()
    if inspect.isgeneratorfunction(case) and case.__module__ == room.__name__
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_advice_followed_makes_the_data_right(shared_root, data_root, check, settings, case):
    steps = case(data_root)
    planted = next(steps)
    fix, changes = planted if isinstance(planted, tuple) else (planted, {})
    faults = check(data_root, num_workers=0, **changes).faults
    found = [fault for fault in faults if fault.fix == fix]
    assert found, [str(fault) for fault in faults]
    changes = dict(follow(steps, found[0]))
    is_another, tolerance = changes.pop("another", False), changes.pop("tolerance", 1e-6)
    report = check(data_root, num_workers=0, **changes)
    assert report.ok, report.summary()
    if not is_another:
        dataset, right = (GuidanceDataset(root, **settings) for root in (data_root, shared_root))
        for name, values in right.read_clip(0, 5)["guidance"].items():
            np.testing.assert_allclose(dataset.read_clip(0, 5)["guidance"][name], values, atol=tolerance)


def follow(steps, fault):
    """Return the settings that following a fault's fix changes."""
    try:
        return steps.send(fault) or {}
    except StopIteration:
        return {}


# ---- no fix is left out ----

ROOMS = (*REPOSITORY.glob("datasets/checking/*.py"), *REPOSITORY.glob("datasets/guidance/*.py"),
         REPOSITORY / "datasets" / "data_folder.py", REPOSITORY / "datasets" / "takes.py")  # fmt: skip
NOT_TRIED = {  # the fix is to bring back what was there, to look again, or belongs to another command
    "give a JSON file, an npy file or a folder of pose files",
    "restore the file", "restore or replace the file", "replace the file", "write the map again",
    "check the path", "{}; if others die too, lower --num_workers", "first fault: {}",
    "cut the video and its guidance there, or record it again: a still image is no dance",
    "mend them likewise", "leave out --random_flip", "leave out --random_flip; {}",
    "give the size of the video they were made from (--pose_size WIDTH HEIGHT)",
    "give the folder that holds {}/, poses/ and so on", "give {} instead",
    "prepare it with prepare_guidance.py, or see that maps and points in pixels are of {}",
    "write images of 1, 3 or 4 channels",
}  # fmt: skip


def literals(node):
    """Yield the texts that an expression may be, {} in place of what is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.IfExp):
        yield from (*literals(node.body), *literals(node.orelse))


def proposed_fixes():
    """Return the fixes that are written in the rooms of the data check."""
    places = {"DataError": 2, "add": 2, "Fault": 3}  # the argument that is the fix
    found = set()
    for path in ROOMS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if name in places and len(node.args) > places[name]:
                    found |= set(literals(node.args[places[name]]))
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "fix":
                found |= set(literals(node.value))
            elif isinstance(node, ast.FunctionDef) and node.name.endswith(("_fix", "fitting_rate")):
                returned = [one.value for one in ast.walk(node) if isinstance(one, ast.Return)]
                found |= {text for value in returned for text in literals(value)}
    return {fix for fix in found if fix.strip("{} ,.:;()")}


def test_every_fix_is_tried():
    tried = "".join(map(inspect.getsource, (planting, *ROOMS_OF_CASES)))
    fixes = proposed_fixes()
    assert len(fixes) > 40
    untried = {fix for fix in fixes - NOT_TRIED if max(fix.split("{}"), key=len).strip(' "()') not in tried}
    assert untried == set()
