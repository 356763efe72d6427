"""A few short videos of one dancer whom the demo's model has never seen, drawn by the demo's own code."""

import shutil
from pathlib import Path

from demo.data import FOLDERS, DemoScene, write_scene

# Seeds of the demo's training and held-out dancers begin at 0 and at 500,000.
DANCER_SEED = 900_000
NUM_VIDEOS = {"train": 3, "validation": 3, "test": 8}  # each to a song of its own, 40 frames at 12 per second


def scene_of(sample_id: str) -> DemoScene:
    """Return the scene of `dancer_NN`: the new dancer, to song NN."""
    return DemoScene(DANCER_SEED + int(sample_id.rsplit("_", 1)[1]), dancer_seed=DANCER_SEED)


def make_videos(work_dir: Path) -> None:
    """Write train/, validation/ and test/ into a folder; what is there is left as it is."""
    number = 0
    for split, count in NUM_VIDEOS.items():
        names = [f"dancer_{song:02}" for song in range(number, number + count)]
        number += count
        if (work_dir / split).exists():
            continue
        partial_dir = work_dir / f".{split}.partial"
        shutil.rmtree(partial_dir, ignore_errors=True)
        for folder in FOLDERS:
            (partial_dir / folder).mkdir(parents=True)
        for name in names:
            write_scene(partial_dir, name, scene_of(name))
        partial_dir.rename(work_dir / split)


def with_prior(work_dir: Path, demo_train: Path, *, num_prior: int = 9) -> Path:
    """Return a folder of links: half of its samples the dancer's videos, half the demo's own."""
    mixed = work_dir / "train_with_prior"
    own = [path.stem for path in sorted((work_dir / "train" / "videos").glob("*.mp4"))]
    prior = [path.stem for path in sorted((demo_train / "videos").glob("*.mp4"))[:num_prior]]
    links = [(work_dir / "train", name, f"{name}_copy{turn}")
             for turn in range(num_prior // len(own)) for name in own]  # fmt: skip
    for root, name, link in [*links, *((demo_train, name, name) for name in prior)]:
        for folder in FOLDERS:
            (mixed / folder).mkdir(parents=True, exist_ok=True)
            for path in (root / folder).glob(f"{name}*"):
                target = mixed / folder / path.name.replace(name, link)
                if not target.is_symlink():
                    target.symlink_to(path.resolve(), target_is_directory=path.is_dir())
    return mixed
