"""How fast are clips read? Random 16-frame clips at 512 from a 1080p video, side by side with OpenCV.

    python benchmarks/data_loading.py [--video FILE] [--json FILE]      clips per second per core
    python benchmarks/data_loading.py --memory_clips 2000               a worker's memory over 2,000 clips

Protocol. One process, one thread in everything. The source is a file with a key frame every 250 frames (the
default draws one: 1080x1920, h264, 12 s at 24 fps); "prepared" is the same video with a shorter side of
512 and a key frame every 12. Every method reads the same random clips in turn, several times over; figures
are medians over these rounds of clips per second of CPU time (all threads), and of wall time. The baseline
opens the file with cv2.VideoCapture and seeks for each frame, as public trainers do; its frames then go
through the same resize and crop. "dataset" is GuidanceDataset with poses, music, reference and CLIP image;
"first visit" is the same with nothing known of the video, as in a worker's first epoch. "latent cache" reads
clips as --cache_latents does, from a file in the shapes and types of SD 1.5's latents.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import system.waiting  # noqa: E402  (before torch is loaded)

import av  # noqa: E402
import cv2  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from tqdm import tqdm  # noqa: E402

from caching import CachedClips, LatentCache  # noqa: E402
from datasets import DataError, GuidanceDataset, VideoReader  # noqa: E402
from datasets.transforms import make_transform  # noqa: E402

NUM_KEY_POINTS, NUM_FEATURES = 134, 35
SOURCE_SIZE, SOURCE_SECONDS, SOURCE_RATE = (1920, 1080), 12, 24
SOURCE_KEY_DISTANCE, PREPARED_KEY_DISTANCE = 250, 12
FIT = "crop"  # covers all of the output, so that no method resizes less than the others
MEMORY_VIDEOS = 8  # names for the one video, so that caches hold several
BASELINE = "cv2, a seek per frame, source"


def draw_source(path: Path) -> None:
    """Write textured shapes that move over a textured ground."""
    generator = np.random.default_rng(0)
    height, width = SOURCE_SIZE
    ground = cv2.GaussianBlur(generator.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 3)
    cloth = cv2.GaussianBlur(generator.integers(0, 256, (600, 600, 3), np.uint8), (0, 0), 2)
    places = generator.uniform(0, 1, (6, 2))
    speeds = generator.uniform(0.5, 2, (6, 2))

    def frames():
        for number in range(SOURCE_SECONDS * SOURCE_RATE):
            frame = ground.copy()
            swing = 0.5 + 0.5 * np.sin(2 * np.pi * (places + speeds * number / SOURCE_RATE))
            for (y, x), size in zip(swing, (600, 500, 400, 300, 200, 100), strict=True):
                top, left = int(y * (height - size)), int(x * (width - size))
                frame[top : top + size, left : left + size] = np.roll(cloth, 7 * number, 1)[:size, :size]
            yield frame

    encode(path, frames(), Fraction(SOURCE_RATE), key_distance=SOURCE_KEY_DISTANCE)


def encode(path: Path, frames, rate: Fraction, *, key_distance: int) -> None:
    """Write frames uint8 [H, W, 3] as h264 with a key frame at least every key_distance frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as output:
        options = {"crf": "18", "preset": "medium", "g": str(key_distance), "threads": "1"}
        stream = output.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        first = next(frames)
        stream.height, stream.width = first.shape[:2]
        for pixels in itertools.chain([first], frames):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode())


def prepared_frames(source: VideoReader, shorter_side: int):
    """Return the frames of a video, resized to a shorter side of even pixels."""
    ratio = shorter_side / min(source.size)
    height, width = (2 * round(side * ratio / 2) for side in source.size)
    for frame in source.iterate():
        yield np.asarray(Image.fromarray(frame).resize((width, height), Image.BICUBIC))


def make_folder(root: Path, video_path: Path, num_copies: int = 1) -> Path:
    """Lay out a data folder about a video: made-up poses and music features, a reference image."""
    reader, generator = VideoReader(video_path), np.random.default_rng(0)
    for copy in range(num_copies):
        name = f"dance_{copy:03d}"
        for folder in (root / "videos", root / "reference_images", root / "music_features"):
            folder.mkdir(parents=True, exist_ok=True)
        (root / "videos" / f"{name}{video_path.suffix}").symlink_to(video_path.resolve())
        Image.fromarray(reader.read([0])[0]).save(root / "reference_images" / f"{name}.jpg", quality=95)
        music = generator.normal(size=(len(reader), NUM_FEATURES)).astype(np.float32)
        np.save(root / "music_features" / f"{name}.npy", music)
        poses = root / "poses" / name
        poses.mkdir(parents=True)
        for number in range(len(reader)):
            points = generator.uniform(0.3, 0.7, (NUM_KEY_POINTS, 3)).round(4).tolist()
            content = {"keypoints": points, "coordinates": "normalized"}
            (poses / f"frame_{number:03d}.json").write_text(json.dumps(content), encoding="utf-8")
    return root


# ---- what is compared: functions from a clip's first frame to its frames, float [F, 3, h, w] ----


def cv2_frames(path: Path, frames: np.ndarray, *, seek_each: bool) -> np.ndarray:
    """Return uint8 [F, H, W, 3], by a seek for each frame, or one seek and reading on."""
    one_thread = [cv2.CAP_PROP_N_THREADS, 1]
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, one_thread)
    images = []
    for position, frame in enumerate(frames):
        if seek_each or position == 0:
            capture.set(cv2.CAP_PROP_POS_FRAMES, int(frame))
        image = capture.read()[1]
        images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(images)


def make_methods(arguments, roots: dict[str, Path]) -> dict[str, Callable[[int], torch.Tensor]]:
    length, resolution = arguments.sequence_length, (arguments.resolution, arguments.resolution)
    datasets = {name: open_dataset(root, arguments) for name, root in roots.items()}
    paths = {name: dataset.video_path(0) for name, dataset in datasets.items()}
    readers = {name: VideoReader(path) for name, path in paths.items()}
    transforms = {name: make_transform(reader.size, resolution, fit=FIT) for name, reader in readers.items()}

    def by_cv2(name: str, seek_each: bool):
        return lambda start: transforms[name].frames(
            cv2_frames(paths[name], start + np.arange(length), seek_each=seek_each)
        )

    def by_reader(name: str):
        return lambda start: transforms[name].frames(readers[name].read(start + np.arange(length)))

    def by_dataset(name: str):
        return lambda start: datasets[name].read_clip(0, start)["frames"]

    def by_new_dataset(name: str):  # a pickled one leaves its cache behind
        return lambda start: pickle.loads(pickle.dumps(datasets[name])).read_clip(0, start)["frames"]

    methods = {BASELINE: by_cv2("source", True)}
    for name in roots:
        if name != "source":
            methods[f"cv2, a seek per frame, {name}"] = by_cv2(name, True)
        methods[f"cv2, one seek, {name}"] = by_cv2(name, False)
        methods[f"frames only, {name}"] = by_reader(name)
        methods[f"dataset, {name}"] = by_dataset(name)
        methods[f"dataset, {name}, first visit"] = by_new_dataset(name)
    return methods


def open_dataset(root: Path, arguments, **settings) -> GuidanceDataset:
    return GuidanceDataset(
        root, ["music", "pose"], [NUM_FEATURES, NUM_KEY_POINTS], resolution=arguments.resolution,
        sequence_length=arguments.sequence_length, fit=FIT, **settings,
    )  # fmt: skip


class AveragingEncoder:
    """In the VAE's place, whose work is not measured here: means of 8x8 pixels, a fourth channel of 0."""

    num_frames = 8

    def encode_frames(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        mean = F.pad(F.avg_pool2d(frames, 8), (0, 0, 0, 0, 0, 1))  # [n, 4, h, w]
        return {"latent_mean": mean, "latent_std": torch.zeros_like(mean)}

    def encode_reference(self, reference_image: torch.Tensor, clip_image: torch.Tensor) -> dict:
        latents = self.encode_frames(reference_image[None])["latent_mean"][0]
        return {"reference_latents": latents, "image_tokens": clip_image.new_zeros(1, 768)}


def make_cached(root: Path, cache_dir: Path, arguments) -> Callable[[int], dict]:
    """Return a function from a number to the clip that the latent cache draws in the epoch of that number."""
    dataset = open_dataset(root, arguments, center_crop=True)
    cache = LatentCache(dataset, cache_dir, {"vae": AveragingEncoder.__name__})
    entry = cache.find([0])[0]
    cache.build(entry, AveragingEncoder())
    clips = CachedClips(
        {0: entry.path}, dataset.sample_ids, sequence_length=arguments.sequence_length, frame_stride=1,
        seed=dataset.seed,
    )  # fmt: skip

    def read(epoch: int) -> dict:
        clips.set_epoch(epoch)
        return clips[0]

    return read


def measure(methods: dict[str, Callable], num_starts: int, arguments) -> dict[str, dict[str, float]]:
    """Return {method: clips per second of CPU and wall time, their ratio to the baseline}, medians."""
    generator = np.random.default_rng(arguments.seed)
    speeds = {name: [] for name in methods}
    for read in methods.values():
        read(0)  # opens what is opened once
    for _ in tqdm(range(arguments.repetitions), desc="rounds"):
        starts = generator.integers(num_starts, size=arguments.clips).tolist()
        for name, read in methods.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for start in starts:
                read(start)
            spent = (time.process_time() - cpu, time.perf_counter() - wall)
            speeds[name].append([len(starts) / seconds for seconds in spent])
    rounds = {name: np.array(values) for name, values in speeds.items()}  # [R, 2]
    return {
        name: {
            "clips_per_cpu_second": round(float(np.median(values[:, 0])), 3),
            "clips_per_second": round(float(np.median(values[:, 1])), 3),
            "times_baseline": round(float(np.median(values[:, 0] / rounds[BASELINE][:, 0])), 1),
        }
        for name, values in rounds.items()
    }


def measure_memory(root: Path, arguments) -> dict[str, float]:
    """Return {number of clips: MiB of this process after them}, at 200 and at each tenth; random clips."""
    dataset, process, mebibytes = open_dataset(root, arguments), psutil.Process(), {}
    total = arguments.memory_clips
    points = {min(200, total), *(total * tenth // 10 for tenth in range(1, 11))}
    for number in tqdm(range(total), desc="clips"):
        dataset.set_epoch(number // len(dataset))
        dataset[number % len(dataset)]
        if number + 1 in points:
            mebibytes[str(number + 1)] = round(process.memory_info().rss / 2**20, 1)
    return mebibytes


def run(arguments, work_dir: Path) -> dict:
    """Make the folders and measure; return what goes into the JSON file."""
    source = arguments.video or work_dir / "source.mp4"
    if arguments.video is None:
        draw_source(source)
    reader = VideoReader(source)
    prepared, rate = work_dir / "prepared.mp4", Fraction(reader.frame_rate).limit_denominator(1001)
    frames = prepared_frames(reader, arguments.resolution)
    encode(prepared, frames, rate, key_distance=PREPARED_KEY_DISTANCE)
    result = {"video": source.name, "size": reader.size, "num_frames": len(reader)}
    if arguments.memory_clips:
        root = make_folder(work_dir / "memory", prepared, MEMORY_VIDEOS)
        return {**result, "memory_mebibytes": measure_memory(root, arguments)}
    num_starts = len(reader) - arguments.sequence_length + 1
    if num_starts < 1:
        raise DataError(source, f"{len(reader)} frames, too few for a clip", "choose a longer video")
    roots = {name: make_folder(work_dir / name, path) for name, path in
             (("source", source), ("prepared", prepared))}  # fmt: skip
    methods = make_methods(arguments, roots)
    methods["latent cache"] = make_cached(roots["prepared"], work_dir / "latent_cache", arguments)
    return {**result, "speed": measure(methods, num_starts, arguments)}


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--video", type=Path, help="a video of yours instead of the drawn one")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--sequence_length", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=5, help="rounds over all methods")
    parser.add_argument("--clips", type=int, default=2, help="random clips a round")
    parser.add_argument("--memory_clips", type=int, help="measure memory over that many clips, nothing else")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args(argv)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as work_dir:
            result = run(arguments, Path(work_dir))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
