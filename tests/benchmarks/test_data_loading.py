"""The reading benchmark compares like with like, and says what is wrong with a video."""

import argparse
import json

import cv2
import numpy as np
import torch

from benchmarks import data_loading
from datasets import write_video

SIZE, NUM_FRAMES = (96, 64), 14  # (height, width)


def write_blobs(path):
    """Smooth pictures that move, so that a frame read one too early is another picture."""
    y, x, number = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]), np.arange(NUM_FRAMES), indexing="ij")
    blob = 200 * np.exp(-((x - 4 * number - 4) ** 2 + (y - 40) ** 2) / 80) + 30
    write_video(path, np.moveaxis(np.repeat(blob[..., None], 3, -1), 2, 0).astype(np.uint8), 12)
    return path


def test_all_methods_read_the_same_clip(tmp_path):
    video = write_blobs(tmp_path / "a.mp4")
    arguments = argparse.Namespace(resolution=32, sequence_length=4)
    roots = {name: data_loading.make_folder(tmp_path / name, video) for name in ("source", "prepared")}
    clips = {name: read(5) for name, read in data_loading.make_methods(arguments, roots).items()}
    assert len(clips) == 10
    next_clip = data_loading.make_methods(arguments, roots)[data_loading.BASELINE](6)
    for name, clip in clips.items():
        assert clip.shape == (4, 3, 32, 32), name
        assert (clip - clips[data_loading.BASELINE]).abs().max() < 0.1, name
    assert (next_clip - clips[data_loading.BASELINE]).abs().max() > 0.5


def test_the_cache_reads_clips_of_the_video(tmp_path):
    arguments = argparse.Namespace(resolution=32, sequence_length=4)
    root = data_loading.make_folder(tmp_path / "data", write_blobs(tmp_path / "a.mp4"))
    read = data_loading.make_cached(root, tmp_path / "cache", arguments)
    dataset = data_loading.open_dataset(root, arguments, center_crop=True)
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        expected = torch.nn.functional.avg_pool2d(dataset[0]["frames"], 8)
        torch.testing.assert_close(read(epoch)["latent_mean"][:, :3], expected)


def test_figures_and_memory(tmp_path, capsys):
    threads = cv2.getNumThreads(), torch.get_num_threads()
    flags = ["--video", str(write_blobs(tmp_path / "a.mp4")), "--resolution", "32", "--sequence_length", "4"]
    try:
        assert data_loading.main([*flags, "--repetitions", "1", "--json", str(tmp_path / "a.json")]) == 0
        assert data_loading.main([*flags, "--memory_clips", "20", "--json", str(tmp_path / "b.json")]) == 0
        assert data_loading.main(["--video", str(tmp_path / "none.mp4")]) == 2
    finally:
        cv2.setNumThreads(threads[0]), torch.set_num_threads(threads[1])
    speed = json.loads((tmp_path / "a.json").read_text())["speed"]
    assert speed[data_loading.BASELINE]["times_baseline"] == 1
    assert all(figures["clips_per_cpu_second"] > 0 for figures in speed.values())
    memory = json.loads((tmp_path / "b.json").read_text())["memory_mebibytes"]
    assert list(memory) == [str(number) for number in range(2, 21, 2)]
    assert "none.mp4: no such video file" in capsys.readouterr().err
