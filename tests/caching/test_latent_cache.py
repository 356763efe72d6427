"""The latent cache's files: the clips of the dataset, noticed changes, nothing half-written, full disks."""

import errno
import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from caching import CachedClips, LatentCache, latent_cache, source_digests
from caching.latent_cache import pack, unpack
from datasets import DataError, GuidanceDataset


class MeanColours:
    """Stands in for the networks: a frame's latent is the mean of each 8x8 block."""

    num_frames = 5

    def encode_frames(self, frames):
        mean = torch.nn.functional.avg_pool2d(frames, 8)
        return {"latent_mean": mean, "latent_std": 0.5 * mean}

    def encode_reference(self, reference_image, clip_image):
        return {
            "reference_latents": self.encode_frames(reference_image)["latent_mean"],
            "image_tokens": clip_image.mean((1, 2))[None],
        }


def open_cache(data_root, cache_dir, settings, encoded_by=None, **changes):
    dataset = GuidanceDataset(data_root, **{**settings, **changes}, center_crop=True, seed=3)
    return LatentCache(dataset, cache_dir, encoded_by or {"vae": "one"})


def build(cache, indices=(0, 1)):
    """Build what is missing; return {sample id: reason}."""
    missing = [entry for entry in cache.find(indices) if entry.reason is not None]
    for entry in missing:
        cache.build(entry, MeanColours())
    assert all(entry.reason is None for entry in cache.find(indices))
    return {cache.dataset.sample_ids[entry.index]: entry.reason for entry in missing}


def clips_of(cache):
    dataset = cache.dataset
    return CachedClips(
        {entry.index: entry.path for entry in cache.find(range(len(dataset)))}, dataset.sample_ids,
        sequence_length=dataset.sequence_length, frame_stride=dataset.frame_stride, seed=dataset.seed,
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"frame_stride": 3}, {"data_format": "image"}, {"resolution": 32}])
def test_clips_are_those_of_the_dataset(data_root, tmp_path, settings, changes):
    add_depth(data_root, size=(96, 96))
    with_depth = {"guidance_types": ["music", "pose", "depth"], "guidance_input_channels": [5, 134, 3]}
    cache = open_cache(data_root, tmp_path / "cache", settings, **with_depth, **changes)
    assert build(cache) == {"dance_001": "new", "dance_002": "new"}
    clips, starts = clips_of(cache), set()
    for epoch in range(4):
        cache.dataset.set_epoch(epoch)
        clips.set_epoch(epoch)
        for index in (0, 1):
            plain, cached = cache.dataset[index], clips[index]
            assert cached["sample_id"] == plain["sample_id"]
            for name in ("frame_indices", "frame_seconds"):
                assert torch.equal(cached[name], plain[name])
            assert cached["guidance"].keys() == plain["guidance"].keys()
            for name, condition in plain["guidance"].items():
                assert torch.equal(cached["guidance"][name], condition)
            moments = MeanColours().encode_frames(plain["frames"])
            reference = MeanColours().encode_reference(plain["reference_image"], plain["clip_image"])
            for name, expected in {**moments, **reference}.items():
                assert torch.equal(cached[name], expected), name
            starts.add(int(plain["frame_indices"][0]))
    assert len(starts) > 2
    with safe_open(clips.paths[0], framework="pt") as file:
        assert file.get_slice("guidance/depth").get_dtype() == "U8"  # resampled, but of bytes


def add_depth(root, size):
    for poses in (root / "poses").iterdir():
        (root / "depth" / poses.name).mkdir(parents=True)
        for number in range(len(list(poses.iterdir()))):
            picture = np.random.default_rng(number).integers(0, 256, (*size, 3)).astype(np.uint8)
            Image.fromarray(picture).save(root / "depth" / poses.name / f"frame_{number:03d}.png")


def change_pose(root):
    path = root / "poses" / "dance_001" / "frame_007.json"
    path.write_text(path.read_text().replace("0.5", "0.4"))  # of the same size


def change_reference(root):
    Image.new("RGB", (64, 64), "red").save(root / "reference_images" / "dance_001.png")


def change_video(root):
    shutil.copy(root / "videos" / "dance_002.mp4", root / "other.mp4")
    with (root / "videos" / "dance_001.mp4").open("ab") as file:
        file.write(b"\0\0\0\x08free")  # an empty box


def state_a_rate(root):
    (root / "music_features" / "dance_001" / "meta.json").write_text('{"fps": 12}')


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (change_pose, "guidance/pose changed"),
        (change_reference, "reference_image changed"),
        (change_video, "video changed"),
        (state_a_rate, "guidance/music changed"),
    ],
)
def test_a_changed_source_is_noticed(data_root, tmp_path, settings, change, reason):
    cache_dir = tmp_path / "cache"
    build(open_cache(data_root, cache_dir, settings))
    before = {path.name for path in cache_dir.rglob("*.safetensors")}
    change(data_root)
    assert build(open_cache(data_root, cache_dir, settings)) == {"dance_001": reason}
    after = {path.name for path in cache_dir.rglob("*.safetensors")}
    assert len(after) == 2 and len(after & before) == 1  # the outdated file is gone


def test_other_settings_have_a_folder_of_their_own(data_root, tmp_path, settings):
    cache_dir = tmp_path / "cache"
    build(open_cache(data_root, cache_dir, settings))
    other = open_cache(data_root, cache_dir, settings, {"vae": "two"}, resolution=32)
    assert "other resolution, vae than in" in other.note_on_other_settings()
    assert build(other) == {"dance_001": "new", "dance_002": "new"}
    assert other.note_on_other_settings() is None
    assert build(open_cache(data_root, cache_dir, settings)) == {}


def test_runs_of_other_music_rates_keep_their_files(data_root, tmp_path, settings):
    """The one must not remove what the other trains on, and nearly equal rates are not equal."""
    caches = [
        open_cache(data_root, tmp_path / "cache", settings, music_feature_fps=fps) for fps in (12, 12.00001)
    ]
    for cache in caches:
        assert build(cache) == {"dance_001": "new", "dance_002": "new"}
    assert all(path.exists() for cache in caches for path in clips_of(cache).paths.values())


def test_a_moved_data_folder_and_a_shared_cache(data_root, tmp_path, settings, shared_root):
    cache_dir = tmp_path / "cache"
    build(open_cache(data_root, cache_dir, settings))
    moved = data_root.rename(tmp_path / "moved")
    assert build(open_cache(moved, cache_dir, settings)) == {}
    change_pose(moved)
    build(open_cache(moved, cache_dir, settings))
    assert build(open_cache(shared_root, cache_dir, settings)) == {}  # it has what the moved one had
    assert build(open_cache(moved, cache_dir, settings)) == {}


def test_a_cut_off_file_is_built_again(data_root, tmp_path, settings):
    cache = open_cache(data_root, tmp_path / "cache", settings)
    build(cache)
    path = cache.find([0])[0].path
    clips = clips_of(cache)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match="cannot be read.*start again"):
        clips[0]
    assert build(cache) == {"dance_001": "damaged"}


def test_unchanged_files_are_read_once(data_root, tmp_path, settings, monkeypatch):
    for path in data_root.rglob("*"):
        os.utime(path, (1e9, 1e9))
    monkeypatch.setattr(source_digests, "FRESH_SECONDS", -60)  # the files' ctime is now
    build(open_cache(data_root, tmp_path / "cache", settings))

    def read_again(files):
        raise AssertionError(f"{files} are read again")

    monkeypatch.setattr(source_digests, "_content_digest", read_again)
    assert build(open_cache(data_root, tmp_path / "cache", settings)) == {}


def test_a_whole_cache_may_be_read_only(data_root, tmp_path, settings, monkeypatch):
    cache = open_cache(data_root, tmp_path / "cache", settings)
    build(cache)
    moved = data_root.rename(tmp_path / "moved")  # its files' digests are news

    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(source_digests, "FRESH_SECONDS", -1e9)
    monkeypatch.setattr(source_digests.os, "replace", refuse)
    found = open_cache(moved, tmp_path / "cache", settings).find([0, 1])
    assert [entry.reason for entry in found] == [None, None]
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_a_fresh_file_is_not_taken_for_unchanged(data_root, tmp_path, settings, monkeypatch):
    monkeypatch.setattr(source_digests.time, "time", lambda: 0.0)  # all files are fresh
    build(open_cache(data_root, tmp_path / "cache", settings))
    assert not list((tmp_path / "cache").glob("digests-*"))


def test_others_may_read_what_they_may_read_elsewhere(data_root, tmp_path, settings):
    cache = open_cache(data_root, tmp_path / "cache", settings)
    build(cache)
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    assert {path.stat().st_mode for path in cache.folder.iterdir()} == {ordinary.stat().st_mode}


def half_written(tensors, path, metadata):
    path.write_bytes(b"half a file")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_becomes_full(data_root, tmp_path, settings, monkeypatch):
    cache = open_cache(data_root, tmp_path / "cache", settings)
    monkeypatch.setattr(latent_cache, "save_file", half_written)
    with pytest.raises(DataError) as raised:
        build(cache)
    assert str(raised.value).startswith(f"{tmp_path / 'cache'}: the disk became full")
    assert not list(cache.folder.glob("*.safetensors")) + list(cache.folder.glob("*.tmp"))


def test_a_disk_without_room_is_told_before(data_root, tmp_path, settings, monkeypatch):
    cache = open_cache(data_root, tmp_path / "cache", settings)
    entries = cache.find([0, 1])
    needed = cache.num_bytes(sum(entry.num_frames for entry in entries), 2, latent_bytes=2 * 3 * 8 * 8 * 4)
    build(cache)
    written = sum(entry.path.stat().st_size for entry in entries)
    assert written <= needed < 1.3 * written  # an estimate, above the truth
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(DataError, match="needs .* more, but the disk has .* free; make room, .*--cache_dir"):
        cache.check_space(needed)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    cache.check_space(needed)


def test_what_a_killed_process_left_is_removed_later(data_root, tmp_path, settings):
    cache = open_cache(data_root, tmp_path / "cache", settings)
    build(cache)
    old, young = cache.folder / "dance_001-0123.safetensors.0a1b.tmp", cache.folder / ".tmpAbCdEf"
    for path in (old, young):
        path.write_bytes(b"half a file")
    os.utime(old, (1e9, 1e9))
    cache.remove_abandoned()
    assert not old.exists() and young.exists()  # another run may be writing that one
    assert build(cache) == {}


def test_pictures_are_packed_without_loss():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert pack(unpack(levels)).dtype == torch.uint8
    assert torch.equal(pack(unpack(levels)), levels)
    for other in (unpack(levels) + 1e-4, unpack(levels) * 2, torch.zeros(3, 134, 3)):
        assert pack(other) is other


def test_maps_that_are_not_all_of_bytes(data_root, tmp_path, settings):
    add_depth(data_root, size=(64, 64))
    fine = np.random.default_rng(0).integers(0, 2**16, (64, 64)).astype(np.uint16)
    Image.fromarray(fine).save(data_root / "depth" / "dance_001" / "frame_011.png")
    with_depth = {"guidance_types": ["depth", "pose"], "guidance_input_channels": [1, 134]}
    cache = open_cache(data_root, tmp_path / "cache", {**settings, **with_depth}, sequence_length=24)
    build(cache)
    for index in (0, 1):
        expected = cache.dataset.read_clip(index)["guidance"]["depth"]
        assert torch.equal(clips_of(cache)[index]["guidance"]["depth"], expected)


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="tells maps on Linux only")
def test_no_file_stays_mapped(data_root, tmp_path, settings):
    cache = open_cache(data_root, tmp_path / "cache", settings)
    build(cache)
    item = clips_of(cache)[0]
    kept = {name: value.clone() for name, value in item.items() if isinstance(value, torch.Tensor)}
    del item
    with open("/proc/self/maps") as maps:
        assert "safetensors" not in "".join(line for line in maps if str(tmp_path) in line)
    assert json.dumps(sorted(kept)) and kept["latent_mean"].shape == (4, 3, 8, 8)


def test_a_video_needs_one_transform(data_root, settings, tmp_path):
    with pytest.raises(ValueError, match="center_crop"):
        LatentCache(GuidanceDataset(data_root, **settings), tmp_path, {})
