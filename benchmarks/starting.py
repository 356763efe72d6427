"""What a start costs for each sample of a large folder, or of shards: the first start, and later ones.

    python benchmarks/starting.py --data_dir demo_data/train --num_samples 1000
    python benchmarks/starting.py --data_dir SHARDS --num_samples 100000 --base assets/tiny_base

Makes a folder of links to the samples of --data_dir, again and again under new names; of shards, links to
them, and an index that has their samples again and again. Does what a start of train_guidance.py does for
each sample up to the first batch, in one process; models and the report's page, which cost the same for any
number, are left out. Prints CPU microseconds per sample, of several later starts the best, and the memory
that the first start takes beside the program's own. --base: also whole runs of train_guidance.py of one small
step, first and later, in seconds of CPU.
"""

import argparse
import dataclasses
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import system.waiting  # noqa: F401  (before torch is loaded)

from datasets import GuidanceDataset, check_data, read_report
from datasets.checking.kept_facts import KeptFacts
from datasets.data_folder import recorded_recipe
from shards.clips import ShardClips, ShardSettings, has_shards
from shards.index import Shard, ShardIndex, write_index
from shards.layout import INDEX_NAME, shard_name
from training.batches import SampleStream
from training.data import split_for_validation

LATER_STARTS = 3
SETTINGS = {"resolution": 128, "sequence_length": 8}
ONE_STEP = {
    "guidance_embedding_channels": 256, "guidance_block_out_channels": "8 16 32 64", "resolution": 64,
    "sequence_length": 4, "num_workers": 0, "max_train_steps": 1, "validation_steps": 1000,
    "num_validation_clips": 1, "num_inference_steps": 1, "guidance_scale": 1.0,
}  # fmt: skip


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--guidance_types", nargs="+", default=["music", "pose"])
    parser.add_argument("--guidance_input_channels", nargs="+", type=int, default=[35, 134])
    parser.add_argument("--base", type=Path, help="a small Stable Diffusion folder")
    parser.add_argument("--work_dir", type=Path, help="where the links are made: --data_dir's own disk")
    arguments = parser.parse_args(argv)
    types = arguments.guidance_types, arguments.guidance_input_channels
    of_shards = has_shards(arguments.data_dir)
    with tempfile.TemporaryDirectory(dir=arguments.work_dir) as folder:
        root, out = Path(folder, "data"), Path(folder, "out")
        make = repeat_shards if of_shards else link_samples
        files = apart(make, arguments.data_dir, root, arguments.num_samples)
        print(f"{arguments.num_samples} samples, {files}")
        begin = start_from_shards if of_shards else start
        first, peak = apart(begin, root, out, types)
        later = [apart(begin, root, out, types)[0] for _ in range(LATER_STARTS)]
        whole = [
            one_step(arguments.base, root, Path(folder, "run"), types)
            for _ in range(2 * bool(arguments.base))
        ]
    best = {name: min(one[name] for one in later) for name in first}
    for name in first:
        print(f"{name:12s} first {1e6 * first[name] / arguments.num_samples:8.1f}   later "
              f"{1e6 * best[name] / arguments.num_samples:6.1f} us per sample")  # fmt: skip
    print(f"a start's own memory {peak:.0f} MB")
    for name, (seconds, megabytes) in zip(("first", "later"), whole, strict=False):
        print(f"{name} run of one step: {seconds:.1f} s of CPU, {megabytes:.0f} MB")
    return best


def apart(work: Callable, *arguments):
    """Return what a function returns in a process of its own, which leaves this one's memory as it is."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(work, arguments)


class Parts:
    """{part of a start: CPU seconds}, and the most memory meanwhile."""

    def __init__(self) -> None:
        self.spent, self.before = {}, _peak_megabytes()

    def timed(self, name: str, work: Callable):
        before = time.process_time()
        result = work()
        self.spent[name] = time.process_time() - before
        return result

    def result(self) -> tuple[dict[str, float], float]:
        return self.spent | {"all": sum(self.spent.values())}, _peak_megabytes() - self.before


def _peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def start(root: Path, out: Path, types: tuple[list[str], list[int]]) -> tuple[dict[str, float], float]:
    """Return ({part of a start: CPU seconds}, megabytes) of a data folder."""
    parts, kept = Parts(), KeptFacts(out / "data_facts.sqlite")
    earlier = parts.timed("old report", lambda: read_report(out / "data_report.json"))
    report = parts.timed("check", lambda: check_data(
        root, *types, **SETTINGS, decode_videos=False, num_workers=0, earlier=earlier, kept=kept
    ))  # fmt: skip
    assert not report.errors and report.reused == (earlier is not None), report.summary()
    parts.timed("new report", lambda: report.reused or report.write(out / "data_report.json"))
    dataset = parts.timed("dataset", lambda: GuidanceDataset(root, *types, **SETTINGS, kept=kept))
    parts.timed("statistics", dataset.feature_statistics)
    parts.timed("recipe", lambda: recorded_recipe(root, dataset.sample_ids))
    parts.timed("order", lambda: first_sample(dataset.sample_ids))
    parts.timed("first clip", lambda: dataset[0])
    return parts.result()


def start_from_shards(
    root: Path, out: Path, types: tuple[list[str], list[int]]
) -> tuple[dict[str, float], float]:
    """Return ({part of a start: CPU seconds}, megabytes) of shards."""
    parts, settings = Parts(), ShardSettings(out / "digested_shards")
    dataset = parts.timed("index", lambda: ShardClips(root, *types, **SETTINGS, shards=settings))
    parts.timed("statistics", dataset.feature_statistics)
    number = parts.timed("order", lambda: first_sample(dataset.sample_ids, dataset.shard_numbers))
    parts.timed("first clip", lambda: dataset[number])
    return parts.result()


def first_sample(sample_ids, shard_numbers=None) -> int:
    """Return the first sample to train on; all are held out of validation and ordered for that."""
    indices = split_for_validation(sample_ids)[0]
    numbers = None if shard_numbers is None else shard_numbers[indices]
    return next(iter(SampleStream(indices, batch_size=1, seed=0, shard_numbers=numbers)))[0][2]


def one_step(base: Path, root: Path, out: Path, types: tuple[list[str], list[int]]) -> tuple[float, float]:
    """Return (CPU seconds, megabytes) of a training of one step, its validation and its saves."""
    flags = {
        "pretrained_model_name_or_path": base, "train_data_dir": root, "output_dir": out,
        "guidance_types": " ".join(types[0]), "guidance_input_channels": " ".join(map(str, types[1])),
        "logging_dir": out.with_name("logs"), **ONE_STEP,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", *str(value).split())]
    for folder in ("final", "samples"):
        shutil.rmtree(out / folder, ignore_errors=True)
    program = Path(__file__).parents[1] / "train_guidance.py"
    command = [sys.executable, str(program), *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, encoding="utf-8")
    said = process.stderr.read()
    _, code, usage = os.wait4(process.pid, 0)
    assert code == 0, said[-2000:]
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def link_samples(source: Path, root: Path, num_samples: int) -> str:
    """Make a data folder of hard links to copies of a folder's samples; return what it is of."""
    source = shutil.copytree(source, root.with_name("copied"))  # a link changes a file's dates
    names, num_files = sorted(path.stem for path in (source / "videos").iterdir()), 0
    for folder in filter(Path.is_dir, source.iterdir()):
        (root / folder.name).mkdir(parents=True)
        entries = {path.name if path.is_dir() else path.stem: path for path in folder.iterdir()}
        for number in range(num_samples):
            path = entries.get(names[number % len(names)])
            if path is None:
                continue
            target = root / folder.name / f"dance_{number:07d}{'' if path.is_dir() else path.suffix}"
            if path.is_dir():
                target.mkdir()
            files = (
                [(file, target / file.name) for file in path.iterdir()] if path.is_dir() else [(path, target)]
            )
            for file, link in files:
                os.link(file, link)
            num_files += len(files)
    return f"{num_files / num_samples:.0f} files each"


def repeat_shards(source: Path, root: Path, num_samples: int) -> str:
    """Make shards that are links to others' copies, and their index; return what they are of.

    Of the last ones' samples some may be in no row, and a sample's name is not that of its files in the tar.
    """
    index = ShardIndex(source / INDEX_NAME)
    root.mkdir()
    copies = {shard.number: Path(shutil.copy(source / shard.name, root.parent)) for shard in index.shards}
    rows_of_one = sorted((index.row(number) for number in range(len(index))), key=lambda row: row.shard)
    num_shards, shards = len(index.shards), []
    for number in range(-(-num_samples // len(index)) * num_shards):
        one = index.shards[number % num_shards]
        os.link(copies[one.number], root / shard_name(number))
        shards.append(Shard(number, shard_name(number), one.size, one.sha256))
    rows = (repeated(rows_of_one[number % len(index)], number, number // len(index) * num_shards)
            for number in range(num_samples))  # fmt: skip
    write_index(root / INDEX_NAME, index.about, shards, rows)
    size = (root / INDEX_NAME).stat().st_size
    return f"{len(shards)} shards, {size / num_samples:.0f} bytes of index each"


def repeated(row, number: int, first_shard: int):
    name = f"dance_{number:08d}"
    files = {path.replace(row.name, name): place for path, place in row.files.items()}
    return dataclasses.replace(row, number=number, name=name, shard=first_shard + row.shard, files=files)


if __name__ == "__main__":
    main()
