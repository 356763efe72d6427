"""The check of a data folder: every sample in parallel, then what only shows in comparison."""

import dataclasses
import functools
import hashlib
import json
import os
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from datasets.data_folder import (
    RECIPES,
    VIDEO_FOLDER,
    DataFolder,
    Sample,
    list_data_folder,
    recorded_recipe,
    type_dir,
)
from datasets.guidance.kind import KINDS
from datasets.guidance.track import META_NAME
from datasets.transforms import Size, as_size
from datasets.unread import unread_lines
from system.errors import DataError
from system.file_names import windows_problem
from system.processes import map_in_processes

from .data_report import DataReport, Fault
from .kept_facts import KeptFacts
from .looks import look_of, own_kinds, sample_looks
from .sample_check import CheckSettings, SampleResult, check_sample, crashed_sample

CHECK_VERSION = 4  # to be raised when a check is added, so that old reports no longer count
MANY_SAMPLES = 10_000  # from so many on one file per frame is no good layout
NUM_POSE_POINTS = 134  # pack_guidance.py's default
SAMPLES_AT_ONCE = 4096  # are checked, then kept: a check that is stopped goes on from there


def check_data(
    data_root: str | Path,
    guidance_types: Sequence[str],
    guidance_input_channels: Sequence[int],
    *,
    resolution: int | Size = 512,
    sequence_length: int = 16,
    frame_stride: int = 1,
    music_feature_fps: float | None = None,
    data_format: str = "video",
    validation_data_dir: str | Path | None = None,  # only compared: a video must not be in both
    decode_videos: bool = True,  # False: first and last frames only
    needs_videos: bool = True,  # False: poses and music alone, as DanceDataset reads them
    num_workers: int | None = None,  # processes; None: one per core, at most 8
    earlier: DataReport | None = None,  # returned (as reused) where it still holds
    kept: KeptFacts | None = None,  # counts of samples that look as they did; takes what is found
) -> DataReport:
    """Return every fault of a data folder. Reads all of its files, and raises nothing for their faults."""
    length = 1 if data_format == "image" else sequence_length
    settings = CheckSettings(
        dict(zip(guidance_types, guidance_input_channels, strict=True)), 1 + (length - 1) * frame_stride,
        as_size(resolution), music_feature_fps, decode_videos,
    )  # fmt: skip
    asked = dataclasses.asdict(settings) | {"validation_data_dir": str(validation_data_dir or "")}
    del asked["decode_videos"]  # a report of more decoding than is asked for will do
    asked |= {} if needs_videos else {"needs_videos": False}
    try:
        folder = list_data_folder(data_root, guidance_types, needs_videos=needs_videos)
    except DataError as error:
        return DataReport(str(data_root), [Fault.of(error)], settings=asked)
    found = _Looks(folder, asked)
    if earlier is not None and earlier.fingerprint == found.fingerprint and earlier.decoded >= decode_videos:
        report = dataclasses.replace(earlier, reused=True)
        _note_unread(report, folder)
        return report
    report = check_folder(folder, settings, num_workers=num_workers, looks=found.samples, kept=kept)
    _note_unread(report, folder)
    report.settings, report.fingerprint = asked, found.fingerprint
    report.faults[:0] = [Fault.of(error) for error in folder.faults]
    names = ((sample.sample_id, windows_problem(sample.sample_id)) for sample in folder.samples)
    report.notes += [f"{name!r} cannot be used on Windows: {problem}" for name, problem in names if problem]
    _check_recipes(report, folder)
    _note_many_files(report, folder)
    if not needs_videos:
        _note_square(report)
    elif validation_data_dir is not None:
        report.faults += _shared_videos(folder, validation_data_dir)
    return report


class _Looks:
    """What a folder's files look like, and the settings: what a report on it depends on."""

    def __init__(self, folder: DataFolder, asked: dict) -> None:
        root, validation = os.path.abspath(folder.root), asked["validation_data_dir"]
        of_each = {name: value for name, value in asked.items() if name != "validation_data_dir"}
        missing = sorted(str(fault) for fault in folder.faults)  # not said of each sample again
        words = json.dumps([CHECK_VERSION, own_kinds(), root, missing, of_each], sort_keys=True)
        dirs = [os.fspath(type_dir(folder.root, name)) for name in asked["channels"]]
        base = look_of(words.encode(), [(path, META_NAME) for path in dirs])
        self.samples = sample_looks(folder, base)
        others = [(os.path.abspath(validation), VIDEO_FOLDER)] if validation else []
        self.fingerprint = look_of(b"".join([base, *self.samples]), others).hex()


def _check_recipes(report: DataReport, folder: DataFolder) -> None:
    """Note samples whose recipes differ. With the music's, that is a fault of dances, which hear its columns.

    Everything else is trained on without a recipe.
    """
    faulty = {fault.sample_id for fault in report.faults}
    sound = [sample.sample_id for sample in folder.samples if sample.sample_id not in faulty]
    for name in filter(report.settings["channels"].get, RECIPES):
        try:
            recorded_recipe(folder.root, sound, name)
        except DataError as error:
            if name == "music" and not folder.needs_videos:
                report.faults.append(Fault.of(error))
            elif str(error) not in report.notes:  # metadata that cannot be read are told once
                report.notes.append(str(error))


def _note_many_files(report: DataReport, folder: DataFolder) -> None:
    """Note poses of a file for each frame in a folder so large that every start takes its time for them."""
    names = [sample.guidance_names.get("pose", ()) for sample in folder.samples]
    num_folders = sum(bool(one) and not one[0].lower().endswith(".npy") for one in names)
    if num_folders >= MANY_SAMPLES:
        channels = report.settings["channels"]["pose"]
        more = "" if channels == NUM_POSE_POINTS else f" --guidance_input_channels {channels}"
        command = f"python pack_guidance.py --data_dir {shlex.quote(str(folder.root))} --tracks_only{more}"
        problem = f"pose: {num_folders:,} samples have one file per frame, large folders one poses/NAME.npy"
        report.notes.append(f"{problem}: {command} makes it of them, with the same values")


def _note_square(report: DataReport) -> None:
    square = sum("frames" in facts and "size" not in facts for facts in report.samples.values())
    if square:
        problem = f"pose: the size of the frame is not known in {square} of {len(report.samples)} samples"
        report.notes.append(f"{problem}, which are taken as square")


def _note_unread(report: DataReport, folder: DataFolder) -> None:
    """Note what a folder's listing shows beside the samples, in place of what an earlier one showed.

    The fingerprint is of what is read: what else comes and goes is no reason to check all again.
    """
    lines = unread_lines(folder.unread, folder.root)
    report.notes = [note for note in report.notes if note not in report.listed] + lines
    report.num_unread += len(folder.unread) - report.num_listed
    report.num_listed, report.listed = len(folder.unread), lines


def check_folder(
    folder: DataFolder,
    settings: CheckSettings,
    *,
    num_workers: int | None = None,
    looks: Sequence[bytes] = (),
    kept: KeptFacts | None = None,
) -> DataReport:
    """Return the faults of a listed folder's samples. looks: of each, by which the kept ones are known."""
    known = _known_results(folder, settings, looks, kept) if kept is not None else {}
    left = [place for place, sample in enumerate(folder.samples) if sample.sample_id not in known]
    check = functools.partial(check_sample, dataclasses.replace(folder, samples=[], unread=[]), settings)
    for first in range(0, len(left), SAMPLES_AT_ONCE):
        part = left[first : first + SAMPLES_AT_ONCE]
        title = "checking data" + (f", {first:,} of {len(left):,} samples done" if first else "")
        results = map_in_processes(
            check, [folder.samples[place] for place in part], num_workers=num_workers, title=title,
            crashed=crashed_sample,
        )  # fmt: skip
        if kept is not None:
            kept.keep(results, [looks[place] for place in part], decoded=settings.decode_videos)
        known |= {result.sample.sample_id: result.without_arrays() for result in results}
    return _report_of([known.pop(sample.sample_id) for sample in folder.samples], folder, settings)


def _known_results(
    folder: DataFolder, settings: CheckSettings, looks: Sequence[bytes], kept: KeptFacts
) -> dict[str, SampleResult]:
    """Return {sample id: what is kept} of the samples that look as they did; forget those that are gone."""
    known, found = kept.known(), {}
    for sample, look in zip(folder.samples, looks, strict=True):
        known_look, decoded = known.pop(sample.sample_id, (b"", False))
        if known_look == look and decoded >= settings.decode_videos:
            result = kept.result(sample)
            found |= {sample.sample_id: result} if result is not None else {}
    kept.forget(known)
    return found


def _report_of(results: list[SampleResult], folder: DataFolder, settings: CheckSettings) -> DataReport:
    report = DataReport(str(folder.root), decoded=settings.decode_videos)
    for result in results:
        report.samples[result.sample.sample_id] = result.facts
        report.faults += result.faults
        sample = result.sample
        for paths, fact in ((sample.video_paths, "shown"), (sample.reference_paths, "reference_shown")):
            report.notes += [f"{paths[0]}: {note}" for note in result.facts.get(fact, ())]
    unread = [one for result in results for one in result.unread]
    report.notes += unread_lines(unread, folder.root)
    report.num_unread = len(unread)
    report.faults += _unlike_shapes(results, folder, settings.channels)
    for name in settings.channels:
        facts = [result.facts.get(name, {}) for result in results]
        units = Counter(fact["coordinates"] for fact in facts if "coordinates" in fact)
        for kind, count in sorted(units.items()):
            report.notes.append(f"{name}: coordinates taken as {kind} in {count} of {len(results)} samples")
        crowded = sum("people" in fact for fact in facts)
        if crowded:
            where = f"{crowded} of {len(results)} samples"
            report.notes.append(f"{name}: several people in {where}, of whom the largest is followed")
    return report


def usable_samples(
    folder: DataFolder,
    settings: CheckSettings,
    *,
    skip_invalid: bool,
    left_out: Sequence[tuple[str, str]] | None,
) -> tuple[list[Sample], list[tuple[str, str]]]:
    """Return (the samples to read, (sample id, reason) of those left out).

    skip_invalid: check every sample, and leave out those with a fault, unless left_out has them already.
    Raises DataError for what is missing.
    """
    if left_out is None and skip_invalid:
        if folder.faults:
            raise folder.faults[0]
        report = check_folder(folder, settings)
        left_out = report.left_out
        if len(left_out) == len(folder.samples):
            problem = f"none of its {len(folder.samples)} samples is valid"
            raise DataError(folder.root, problem, f"first fault: {report.errors[0]}")
    if left_out is not None:
        gone = {sample_id for sample_id, _ in left_out}
        return [sample for sample in folder.samples if sample.sample_id not in gone], list(left_out)
    faults = [fault for sample in folder.samples for fault in folder.sample_faults(sample)]
    faults = folder.faults + faults
    if faults:
        more = f" (and {len(faults) - 1} more, listed by --check_data)" if len(faults) > 1 else ""
        raise DataError(faults[0].path, faults[0].problem, faults[0].fix + more)
    return folder.samples, []


def _unlike_shapes(results: list[SampleResult], folder: DataFolder, types: dict[str, int]) -> list[Fault]:
    """Return faults of samples whose rows are not shaped as the others': they cannot share a batch."""
    faults = []
    for name in types:
        shapes = defaultdict(list)
        for result in results:
            facts = result.facts.get(name, {})
            if "shape" in facts and not KINDS[facts["kind"]].in_frame:
                shapes[tuple(facts["shape"])].append(result.sample)
        usual = max(shapes, key=lambda shape: len(shapes[shape]), default=None)
        for shape in shapes.keys() - {usual}:
            for sample in shapes[shape]:
                path = str(folder.track(sample, name).path)
                problem = f"a frame's {name} has shape {shape}, other samples' {usual}"
                faults.append(Fault(sample.sample_id, path, problem, "extract all samples alike"))
    return sorted(faults, key=lambda fault: fault.sample_id)


def _shared_videos(folder: DataFolder, validation_data_dir: str | Path) -> list[Fault]:
    """Return faults of training videos that are, byte for byte, in the validation folder too."""
    try:
        validation = list_data_folder(validation_data_dir, [])
    except DataError as error:
        return [Fault.of(error)]
    by_size = defaultdict(list)
    for sample in validation.samples:
        for path in filter(Path.is_file, sample.video_paths):
            by_size[path.stat().st_size].append(path)
    digest = functools.cache(_digest)  # videos of one size are rare, but for copies
    faults = []
    for sample in folder.samples:
        for path in filter(Path.is_file, sample.video_paths):
            same = [other for other in by_size[path.stat().st_size] if digest(other) == digest(path)]
            if same:
                problem = f"is the same video as {same[0]} of the validation data"
                fix = "keep it in one of them"
                faults.append(Fault(sample.sample_id, str(path), problem, fix, "warning"))
    return faults


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "blake2b").digest()
    except OSError:  # the sample's own check names it
        return os.fsencode(path)
