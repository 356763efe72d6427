"""A data folder to shards: its check, what is left out, the shards, their index."""

import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from datasets import DataReport, check_data, read_report
from datasets.checking.data_report import printable
from datasets.checking.kept_facts import KeptFacts
from datasets.checking.looks import own_kinds
from datasets.data_folder import RECIPES, DataFolder, list_data_folder, recorded_recipe
from system.errors import DataError

from .packing import WORK_FOLDER, Packing, locked_output, plan_shards

REPORT_NAME = "data_report.json"
MAX_FAULTS_SHOWN = 20


@dataclass(frozen=True)
class FolderSettings:
    """What is packed of a data folder, and how it is checked before."""

    channels: dict[str, int]  # {guidance type: guidance_input_channels}
    music_feature_fps: float | None = None
    skip_invalid: bool = False
    shard_bytes: int = 2**30

    def checked(self) -> dict:
        """Return what the check's verdict depends on, as the index states it."""
        return {
            "channels": self.channels, "music_feature_fps": self.music_feature_fps, "kinds": own_kinds()
        }  # fmt: skip


def pack_folder(
    root: Path, output_dir: Path, settings: FolderSettings, *, num_workers: int | None = None
) -> int:
    """Check a data folder, write its shards and their index, sum up; return the exit code."""
    folder = list_data_folder(root, settings.channels)
    inside = output_dir.resolve()
    if root.resolve() in (inside, *inside.parents):
        fix = "give a folder outside of it"
        raise DataError(output_dir, f"lies in the data folder {root}, which it would change", fix)
    with locked_output(output_dir, [sample.sample_id for sample in folder.samples]):
        return _pack(folder, output_dir, settings, num_workers)


def _pack(folder: DataFolder, output_dir: Path, settings: FolderSettings, num_workers: int | None) -> int:
    work, done = output_dir / WORK_FOLDER, Packing.left_out_before(output_dir)
    if done is not None:
        packing = _planned(folder, done, output_dir, settings)
        if packing.is_done(settings.checked()):
            print(printable(f"{output_dir}: up to date, {packing.count()}"))
            return 0
    report = _checked(folder, work, settings, num_workers)
    if report.errors and not (settings.skip_invalid and report.has_usable_samples):
        lines = report.lines(MAX_FAULTS_SHOWN)
        more = len(report.faults) - len(lines)
        fix = "mend them, or leave them out with --skip_invalid"
        lines += [f"{f'and {more} more faults; ' if more > 0 else ''}nothing is packed: {fix}"]
        print("\n".join(lines), file=sys.stderr)
        return 2
    gone = [name for name, _ in report.left_out]
    packing = _planned(folder, gone, output_dir, settings)
    problems = packing.write_shards(num_workers)
    for problem in problems:
        print(printable(f"error: {problem}"), file=sys.stderr)
    if problems:
        return 2
    warnings = _warnings(report)
    names = [sample.sample_id for plan in packing.plans for sample in plan.samples]
    recipes = {name: _recipe(folder, names, name) for name in RECIPES if name in settings.channels}
    about = {"settings": settings.checked(), "recipes": recipes, "left_out": gone}
    report.write(output_dir / REPORT_NAME)
    packing.write_index(about, _facts(work).packed, lambda name: warnings.get(name, ""))
    left = f", {len(gone)} samples left out, as {output_dir / REPORT_NAME} says" if gone else ""
    print(printable(f"{output_dir}: {packing.count()}{left}"))
    return 0


def _planned(
    folder: DataFolder, left_out: Collection[str], output_dir: Path, settings: FolderSettings
) -> Packing:
    gone = set(left_out)
    samples = [sample for sample in folder.samples if sample.sample_id not in gone]
    plans = plan_shards(folder, samples, settings.shard_bytes) if samples else []
    return Packing(folder.root, output_dir, plans)


def _checked(folder: DataFolder, work: Path, settings: FolderSettings, num_workers: int | None) -> DataReport:
    """Return the report on every sample, its whole video decoded; of what looks as it did, the last one's."""
    report = check_data(
        folder.root, list(settings.channels), list(settings.channels.values()), sequence_length=1,
        music_feature_fps=settings.music_feature_fps, num_workers=num_workers,
        earlier=read_report(work / REPORT_NAME), kept=_facts(work),
    )  # fmt: skip
    report.write(work / REPORT_NAME)
    return report


def _facts(work: Path) -> KeptFacts:
    return KeptFacts(work / "data_facts.sqlite")


def _warnings(report: DataReport) -> dict[str, str]:
    """Return {sample id: the check's warnings, a line each}."""
    found: dict[str, list[str]] = {}
    for fault in report.faults:
        found.setdefault(fault.sample_id, []).append(f"{fault.path}: {fault.problem}; {fault.fix}")
    return {name: "\n".join(lines) for name, lines in found.items()}


def _recipe(folder: DataFolder, sample_ids: list[str], type_name: str) -> str | None:
    """Return the recipe of the music features or poses, as training would find it."""
    try:
        return recorded_recipe(folder.root, sample_ids, type_name)
    except DataError:
        return None
