"""What a start costs for each sample of a large folder: the first one, which checks all, and later ones.

`python benchmarks/starting.py --data_dir demo_data/train --num_samples 1000`

Makes a folder of links to the samples of --data_dir, again and again under new names, and does what a start
of train_guidance.py does for each sample up to the first batch, in one process; models and the report's page,
which cost the same for any number, are left out. Prints CPU microseconds per sample, of several later starts
the best.
"""

import argparse
import os
import resource
import shutil
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

LATER_STARTS = 3
SETTINGS = {"resolution": 128, "sequence_length": 8}


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, type=Path)
    parser.add_argument("--num_samples", type=int, default=1000)
    parser.add_argument("--guidance_types", nargs="+", default=["music", "pose"])
    parser.add_argument("--guidance_input_channels", nargs="+", type=int, default=[35, 134])
    arguments = parser.parse_args(argv)
    types = arguments.guidance_types, arguments.guidance_input_channels
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder, "data"), Path(folder, "out")
        copied = shutil.copytree(arguments.data_dir, Path(folder, "copied"))  # a link changes a file's dates
        num_files = link_samples(copied, root, arguments.num_samples)
        first = start(root, out, types)
        later = [start(root, out, types) for _ in range(LATER_STARTS)]
    best = {name: min(one[name] for one in later) for name in first}
    print(
        f"{arguments.num_samples} samples of {num_files / arguments.num_samples:.0f} files, CPU us per sample"
    )
    for name in first:
        print(f"{name:12s} first {1e6 * first[name] / arguments.num_samples:8.0f}   later "
              f"{1e6 * best[name] / arguments.num_samples:6.0f}")  # fmt: skip
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")
    return best


def start(root: Path, out: Path, types: tuple[list[str], list[int]]) -> dict[str, float]:
    """Return {part of a start: CPU seconds}."""
    spent, kept = {}, KeptFacts(out / "data_facts.sqlite")

    def timed(name: str, work: Callable):
        before = time.process_time()
        result = work()
        spent[name] = time.process_time() - before
        return result

    earlier = timed("old report", lambda: read_report(out / "data_report.json"))
    report = timed("check", lambda: check_data(
        root, *types, **SETTINGS, decode_videos=False, num_workers=0, earlier=earlier, kept=kept
    ))  # fmt: skip
    assert not report.errors and report.reused == (earlier is not None), report.summary()
    timed("new report", lambda: report.reused or report.write(out / "data_report.json"))
    dataset = timed("dataset", lambda: GuidanceDataset(root, *types, **SETTINGS, kept=kept))
    timed("statistics", dataset.feature_statistics)
    timed("recipe", lambda: recorded_recipe(root, dataset.sample_ids))
    timed("first clip", lambda: dataset[0])
    return spent | {"all": sum(spent.values())}


def link_samples(source: Path, root: Path, num_samples: int) -> int:
    """Make a data folder of hard links to a folder's samples; return how many files it has."""
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
    return num_files


if __name__ == "__main__":
    main()
