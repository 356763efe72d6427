"""The feature cache's files: rows of what was made of the latent cache's, noticed changes, full disks."""

import errno
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from caching import CachedClips, FeatureCache, feature_cache
from caching.cache_folder import stem_of
from caching.tensor_file import TensorFile
from datasets import DataError
from tests.caching.test_latent_cache import build as build_latents
from tests.caching.test_latent_cache import change_pose, open_cache


class TwiceThePoints:
    """Stands in for the networks: a pose's feature is twice its points; the bank is of two layers."""

    num_frames, guidance_types, dtype = 5, ["pose"], torch.bfloat16
    latent_size, bank_bytes = (8, 8), 2 * (2 * 64 * 3 + 4)

    def feature_shape(self, latent_size):
        return (134, 3)

    def encode_guidance(self, conditions, latent_size):
        assert all(len(rows) <= self.num_frames for rows in conditions.values())
        return {name: (2 * rows).bfloat16() for name, rows in conditions.items()}

    def encode_bank(self, reference_latents, image_tokens):
        first = reference_latents.flatten(1).T
        return {"down": first.bfloat16(), "up": image_tokens.bfloat16()}


@pytest.fixture
def latents(data_root, tmp_path, settings):
    cache = open_cache(data_root, tmp_path / "cache", settings)
    build_latents(cache)
    return cache


def open_features(latents, made_by=None):
    paths = {entry.index: entry.path for entry in latents.find([0, 1])}
    return FeatureCache(paths, latents.cache_dir, made_by or {"unet": "one"})


def build(cache):
    """Build what is missing; return {file's stem: reason}."""
    missing = [entry for entry in cache.find([0, 1]) if entry.reason is not None]
    for entry in missing:
        cache.build(entry, TwiceThePoints())
    assert all(entry.reason is None for entry in cache.find([0, 1]))
    return {stem_of(entry.path): entry.reason for entry in missing}


def clips_with(cache, dataset, **options):
    clips = CachedClips(
        cache.latent_paths, dataset.sample_ids, sequence_length=dataset.sequence_length,
        frame_stride=dataset.frame_stride, seed=dataset.seed,
    )  # fmt: skip
    clips.add_features({entry.index: entry.path for entry in cache.find([0, 1])}, **options)
    return clips


@pytest.mark.parametrize("changes", [{}, {"frame_stride": 3}, {"data_format": "image"}])
def test_clips_bring_their_frames_features(data_root, tmp_path, settings, changes):
    latents = open_cache(data_root, tmp_path / "cache", settings, **changes)
    build_latents(latents)
    cache = open_features(latents)
    assert build(cache) == {"dance_001": "new", "dance_002": "new"}
    clips = clips_with(cache, latents.dataset, unread_types=["pose"])
    for epoch in range(3):
        clips.set_epoch(epoch)
        latents.dataset.set_epoch(epoch)
        for index in (0, 1):
            plain, item = latents.dataset[index], clips[index]
            assert torch.equal(item["frame_indices"], plain["frame_indices"])
            assert torch.equal(item["guidance_features"]["pose"], (2 * plain["guidance"]["pose"]).bfloat16())
            expected = TwiceThePoints().encode_bank(item["reference_latents"], item["image_tokens"])
            assert expected.keys() == item["reference_bank"].keys()
            for name, tokens in expected.items():
                assert torch.equal(item["reference_bank"][name], tokens)
            assert list(item["guidance"]) == ["music"]
            again = clips.read_guidance(item["sample_id"], item["frame_indices"])
            assert again.keys() == plain["guidance"].keys()
            assert all(torch.equal(again[name], plain["guidance"][name]) for name in again)


def test_its_size_is_known_before(latents):
    cache = open_features(latents)
    entries = cache.find([0, 1])
    needed = cache.num_bytes(sum(entry.num_frames for entry in entries), 2, TwiceThePoints())
    build(cache)
    written = sum(entry.path.stat().st_size for entry in entries)
    assert written <= needed < written + 2 * 8192


def test_it_is_outdated_when_the_latents_are(data_root, tmp_path, settings, latents):
    build(open_features(latents))
    change_pose(data_root)
    changed = open_cache(data_root, tmp_path / "cache", settings)
    build_latents(changed)
    cache = open_features(changed)
    assert build(cache) == {"dance_001": "latents changed"}
    assert len(list(cache.folder.glob("*.safetensors"))) == 2  # the outdated file is gone


def test_other_networks_have_a_folder_of_their_own(latents):
    build(open_features(latents))
    other = open_features(latents, {"unet": "two"})
    assert "other unet than in" in other.note_on_other_settings()
    assert build(other) == {"dance_001": "new", "dance_002": "new"}
    assert build(open_features(latents)) == {}


def test_what_is_cut_off_is_built_again(latents):
    cache = open_features(latents)
    build(cache)
    path = cache.find([0])[0].path
    clips = clips_with(cache, latents.dataset)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(DataError, match="cannot be read.*start again"):
        clips[0]
    assert build(cache) == {"dance_001": "damaged"}


def test_a_disk_that_becomes_full(latents, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = open_features(latents)
    monkeypatch.setattr(feature_cache.TensorFile, "put", refuse)
    with pytest.raises(DataError, match="the disk became full .* while the feature cache was written"):
        build(cache)
    assert not list(cache.folder.glob("*.safetensors")) + list(cache.folder.glob("*.tmp"))


def test_latents_that_cannot_be_read_are_not_the_disks_fault(latents):
    cache = open_features(latents)
    entry = cache.find([0])[0]
    os.truncate(cache.latent_paths[0], 1000)
    with pytest.raises(DataError, match="cannot be read") as raised:
        cache.build(entry, TwiceThePoints())
    assert str(raised.value).startswith(str(cache.latent_paths[0]))


def test_a_file_written_row_by_row_is_a_safetensors_file(tmp_path):
    rows = {name: torch.randn(7, 3, 2).to(dtype) for name, dtype in
            (("wide", torch.float32), ("half", torch.bfloat16), ("old", torch.float16))}  # fmt: skip
    layout = {name: (value.dtype, list(value.shape)) for name, value in rows.items()}
    with TensorFile(tmp_path / "file", layout, {"key": "of it"}) as file:
        for first in (4, 0):  # in any order
            for name, value in rows.items():
                file.put(name, value[first : first + 4].transpose(1, 2).contiguous().transpose(1, 2), first)
    found = load_file(tmp_path / "file")
    assert all(torch.equal(found[name], value) for name, value in rows.items())
    with safe_open(tmp_path / "file", framework="pt") as file:
        assert file.metadata() == {"key": "of it"}
