"""Upright, square and wide videos in one training: resumed, accumulated, validated, cached, planned."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from caching import LatentCache
from datasets import GuidanceDataset, write_video
from system.errors import ConfigError
from tests.caching.test_latent_cache import build
from tests.training.runs import assert_same_bits, final_weights, run, scalars
from training.buckets.report import bucket_lines, crop_and_bars
from training.champ import check_sizes
from training.planning import dry_run

FRAME_SIZES = {"dance_001": (96, 54), "dance_002": (64, 64), "dance_003": (54, 96)}
CLIP_SIZES = [(80, 48), (64, 64), (48, 80)]
DATA = ["--guidance_types", "music", "pose", "depth", "--guidance_input_channels", 35, 134, 1]


@pytest.fixture(scope="module")
def mixed_data(tmp_path_factory, write_data):
    """Three videos of three shapes, with maps."""
    root = write_data(tmp_path_factory.mktemp("mixed") / "data", num_videos=3)
    for name, size in FRAME_SIZES.items():
        random = np.random.default_rng(size[0])
        frames = random.integers(0, 255, (12, *size, 3)).astype(np.uint8)
        write_video(root / "videos" / f"{name}.mp4", frames, frame_rate=8)
        (root / "depth" / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(frames[number, ..., 0]).save(root / "depth" / name / f"frame_{number:03d}.png")
    return root


@pytest.fixture
def words(mixed_data):
    return ["--train_data_dir", mixed_data, *DATA, "--aspect_buckets", "--num_validation_clips", 2]


def test_items_have_the_size_of_their_video(mixed_data):
    buckets = [*CLIP_SIZES, (128, 32)]
    dataset = GuidanceDataset(
        mixed_data, ["pose", "depth"], [134, 1], buckets=buckets, sequence_length=4, center_crop=True
    )
    for index, (size, frame_size) in enumerate(zip(CLIP_SIZES, FRAME_SIZES.values(), strict=True)):
        item, part = dataset[index], next(iter(dataset.read_whole(index, 2)))
        assert dataset.clip_size(index) == size and dataset.frame_size(index) == frame_size
        for images in (item["frames"], item["reference_image"], item["guidance"]["depth"], part["frames"]):
            assert tuple(images.shape[-2:]) == size
        assert item["clip_image"].shape == (3, 224, 224)
        assert item["guidance"]["depth"].std() > 0.2  # no bars only


def test_resumed_in_the_middle_it_ends_with_the_same_bits(flags, tmp_path, words, capsys):
    more = [*words, "--gradient_accumulation_steps", 2, "--max_train_steps", 3, "--save_steps", 2]
    more += ["--sequence_length", 2]
    assert run(flags, *more) == 0
    console = capsys.readouterr().err
    assert "  80x48: 1 video, 5.9% of the frames is cropped away\n" in console
    assert "  64x64: 1 video, 0.0% of the frames is cropped away\n" in console
    expected, losses = final_weights(tmp_path / "out"), scalars(tmp_path / "logs", "val_loss")
    panels = list((tmp_path / "out" / "samples").glob("step-*/*.mp4"))
    assert len(panels) == 1 and np.isfinite(losses).all()
    gaps = ("guidance_gap/depth", "guidance_gap/reference", "guidance_gap_alone/pose")
    assert all(np.isfinite(scalars(tmp_path / "logs", name)).all() for name in gaps)
    shutil.rmtree(tmp_path / "out" / "final")
    assert run(flags, *more, "--resume_from_checkpoint", "latest") == 0
    assert "checkpoint-2, step 2" in capsys.readouterr().err
    assert_same_bits(final_weights(tmp_path / "out"), expected)


def test_the_same_from_caches(flags, tmp_path, words, capsys, monkeypatch):
    image, few = tmp_path / "image", [*words, "--num_validation_clips", 1]
    cached = ["--cache_latents", "--cache_features"]
    assert run(flags, *few, "--training_stage", "image", "--output_dir", image, "--max_train_steps", 1) == 0
    motion = [*few, "--training_stage", "motion", "--champ_checkpoint_dir", image / "final"]
    losses = {}
    for name, how in (("plain", ["--center_crop"]), ("cached", cached)):
        folders = ["--output_dir", tmp_path / name, "--logging_dir", tmp_path / f"logs_{name}"]
        assert run(flags, *motion, *how, *folders, "--train_batch_size", 2) == 0
        losses[name] = [scalars(tmp_path / f"logs_{name}", tag) for tag in ("train_loss", "val_loss")]
    assert losses["cached"] == losses["plain"]
    assert_same_bits(final_weights(tmp_path / "cached"), final_weights(tmp_path / "plain"))

    # The largest size counts in a plan.
    monkeypatch.setattr(dry_run, "memory_lines", lambda *_, **__: [])
    assert run(flags, *motion, *cached, "--dry_run", "--aspect_buckets", "80x48", "64x64", "56x88") == 0
    plan = capsys.readouterr().out
    assert "[1, 4, 3, 56, 88]" in plan and "56x88: 1 video" in plan and "GiB for the feature cache" in plan


def test_of_other_buckets_what_keeps_its_size_is_kept(mixed_data, tmp_path):
    def cache_of(*buckets):
        dataset = GuidanceDataset(mixed_data, ["pose"], [134], buckets=buckets, center_crop=True)
        return LatentCache(dataset, tmp_path, {"vae": "one"})

    assert set(build(cache_of(*CLIP_SIZES), range(3)).values()) == {"new"}
    assert build(cache_of(*CLIP_SIZES[:2], (56, 88)), range(3)) == {"dance_003": "resolution changed"}


def test_what_is_rare_is_told(mixed_data):
    dataset = GuidanceDataset(mixed_data, ["pose"], [134], buckets=CLIP_SIZES, fit="pad")
    tall, square, _ = CLIP_SIZES
    data = SimpleNamespace(train_set=dataset, clip_sizes={0: tall, 1: square, 2: square})
    settings = SimpleNamespace(
        train_batch_size=2, gradient_accumulation_steps=1, max_train_steps=2, num_train_epochs=1
    )
    *_, line = bucket_lines(settings, data, 1)
    has = "aspect bucket 80x48 has 1 video, a step takes 2 clips"
    assert line == f"warning: {has}: this run may end before they fill one, and not train on them"
    settings.max_train_steps = 3
    *_, line = bucket_lines(settings, data, 1)
    assert line == f"note: {has}: they make one every 2 epochs, of several clips per video"
    data.clip_sizes = {}
    assert bucket_lines(settings, data, 1) == []


def test_what_is_cropped_and_what_is_padded():
    assert crop_and_bars((100, 50), (64, 64), "crop") == pytest.approx((0.5, 0))
    assert crop_and_bars((100, 50), (64, 64), "pad") == pytest.approx((0, 0.5))
    assert crop_and_bars((64, 64), (64, 64), "auto") == (0, 0)


def test_sizes_that_the_vae_cannot_halve_are_refused():
    with pytest.raises(ConfigError, match="--aspect_buckets 72x56: this VAE needs multiples of 16"):
        check_sizes([64], [(72, 56), (64, 64)], SimpleNamespace(latent_factor=16))
