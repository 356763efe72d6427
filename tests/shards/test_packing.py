"""A data folder to shards and back; training from them gives the bits that the folder gives."""

import filecmp
import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import pack_guidance
from datasets import GuidanceDataset
from shards.clips import ShardClips
from shards.from_folder import FolderSettings
from shards.index import ShardIndex
from shards.layout import id_of, key_of, member_name
from shards.store import LocalShards
from system.errors import DataError
from tests.shards.conftest import TYPES


def test_shards_give_the_clips_of_the_folder(tiny_data, tiny_shards):
    keywords = {"resolution": 64, "sequence_length": 4, "seed": 5}
    folder = GuidanceDataset(tiny_data, ["music", "pose"], [35, 134], **keywords)
    shards = ShardClips(tiny_shards, ["music", "pose"], [35, 134], **keywords)
    assert list(shards.sample_ids) == folder.sample_ids
    for index in range(len(folder)):
        assert_same(folder[index], shards[index])
    assert_same(folder.feature_statistics(), shards.feature_statistics())


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, tuple):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    else:
        assert one == other


def test_unpacked_are_the_same_bytes(tiny_data, tiny_shards, tmp_path):
    out = tmp_path / "data"
    assert pack_guidance.main(["--data_dir", str(tiny_shards), "--unpack", "--output_dir", str(out)]) == 0
    files = {path.relative_to(tiny_data) for path in tiny_data.rglob("*") if path.is_file()}
    assert {path.relative_to(out) for path in out.rglob("*") if path.is_file()} == files
    assert filecmp.cmpfiles(tiny_data, out, map(str, files), shallow=False)[1:] == ([], [])


def test_shards_of_other_data_are_not_overwritten(tiny_data, tiny_shards, tmp_path, capsys):
    others = shutil.copytree(tiny_data, tmp_path / "others", symlinks=True)
    for path in [one for one in others.rglob("dance_00*") if one.parent.parent == others]:
        path.rename(path.with_name(path.name.replace("dance", "other")))
    before = {path.name: path.stat().st_mtime_ns for path in tiny_shards.iterdir() if path.is_file()}
    assert pack_guidance.main([*TYPES, "--data_dir", str(others), "--output_dir", str(tiny_shards)]) == 2
    assert "has shards of other data; give another --output_dir" in capsys.readouterr().err
    assert before == {path.name: path.stat().st_mtime_ns for path in tiny_shards.iterdir() if path.is_file()}
    own = tmp_path / "own"
    own.mkdir()
    (own / "000001.tar").write_bytes(b"of another program")
    assert pack_guidance.main([*TYPES, "--data_dir", str(others), "--output_dir", str(own)]) == 2
    assert (own / "000001.tar").read_bytes() == b"of another program"


def test_other_programs_read_them(tiny_data, tiny_shards):
    webdataset = pytest.importorskip("webdataset", reason="pip install -r requirements-dev.txt")
    paths = sorted(map(str, tiny_shards.glob("*.tar")))
    samples = {one["__key__"]: one for one in webdataset.WebDataset(paths, shardshuffle=False)}
    assert sorted(samples) == ["dance_001", "dance_002", "dance_003"]
    sample = samples["dance_002"]
    assert sample["mp4"] == (tiny_data / "videos" / "dance_002.mp4").read_bytes()
    pose = json.loads(sample["pose.frame_003.json"])
    assert pose == json.loads((tiny_data / "poses" / "dance_002" / "frame_003.json").read_bytes())


def test_what_is_packed_is_not_packed_again(tiny_data, tmp_path, pack, capsys, monkeypatch):
    pack(tiny_data, tmp_path / "shards")
    assert "3 samples in 1 shard, " in capsys.readouterr().out
    monkeypatch.setattr("shards.from_folder.check_data", None)
    pack(tiny_data, tmp_path / "shards")
    assert "up to date, 3 samples in 1 shard" in capsys.readouterr().out


def test_a_stopped_packing_goes_on(tiny_data, tiny_shards, tmp_path, pack, monkeypatch):
    out = tmp_path / "shards"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("shards.packing.Packing.write_index", stop)
        pack_guidance.pack_folder(tiny_data, out, SETTINGS, num_workers=0)
    assert not (out / "index.sqlite").exists()
    monkeypatch.setattr("shards.packing.write_shard", stop)  # all are there
    pack(tiny_data, out)
    names = [path.name for path in tiny_shards.iterdir() if path.suffix in (".tar", ".sqlite")]
    assert filecmp.cmpfiles(tiny_shards, out, names, shallow=False)[0] == names
    assert not (out / "packing").exists()


SETTINGS = FolderSettings({"music": 35, "pose": 134})


def stop(*_):
    raise KeyboardInterrupt


def test_faults_stop_it_or_are_left_out(tiny_data, tmp_path, capsys):
    root, out = shutil.copytree(tiny_data, tmp_path / "data"), tmp_path / "shards"
    (root / "videos" / "dance_002.mp4").write_bytes(b"no video")
    flags = ["--data_dir", str(root), "--output_dir", str(out), *TYPES, "--num_workers", "0"]
    assert pack_guidance.main(flags) == 2
    assert "dance_002.mp4: is not a readable video" in (said := capsys.readouterr().err)
    assert "nothing is packed: mend them, or leave them out with --skip_invalid" in said
    assert pack_guidance.main([*flags, "--skip_invalid"]) == 0
    assert "2 samples in 1 shard" in capsys.readouterr().out
    assert list(ShardIndex(out / "index.sqlite").names) == ["dance_001", "dance_003"]


def test_damage_is_named(tiny_shards, tmp_path, capsys):
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    verify = ["--data_dir", str(shards), "--verify", "--num_workers", "0"]
    assert pack_guidance.main(verify) == 0
    assert "3 samples in 1 shard, all as the index says" in capsys.readouterr().out
    path, row = shards / "000000.tar", ShardIndex(shards / "index.sqlite").row(1)
    content = bytearray(path.read_bytes())
    content[row.offset + 5000] ^= 1
    path.write_bytes(content)
    assert pack_guidance.main(verify) == 2
    assert "of its samples dance_002; copy it again" in capsys.readouterr().err
    assert pack_guidance.main([*verify[:2], "--unpack", "--output_dir", str(tmp_path / "data")]) == 2
    assert "sample 'dance_002' is damaged" in capsys.readouterr().err

    for damage, said in (
        (lambda: None, "has another content than the index says"),
        (lambda: path.write_bytes(content[:-600]), "by the index"),
        (path.unlink, "is missing, the index has it"),
    ):
        damage()
        clips = ShardClips(shards, ["music", "pose"], [35, 134], resolution=64, sequence_length=4)
        with pytest.raises(DataError, match=f"000000.tar: .*{said}.*; copy it again"):
            clips[0]
    (shards / "index.sqlite").write_bytes(b"SQLite format 3")
    with pytest.raises(DataError, match="is no whole index of shards"):
        ShardIndex(shards / "index.sqlite")


def test_a_shard_is_digested_by_one_process_for_all(tiny_shards, tmp_path, monkeypatch):
    digested, digest = [], hashlib.file_digest

    def slowly(*arguments):
        digested.append(arguments)
        time.sleep(0.05)
        return digest(*arguments)

    monkeypatch.setattr(hashlib, "file_digest", slowly)
    (shard,) = ShardIndex(tiny_shards / "index.sqlite").shards
    with ThreadPoolExecutor(4) as pool:
        stores = [LocalShards(tiny_shards, tmp_path / "notes") for _ in range(4)]
        assert len(set(pool.map(lambda store: store.path_of(shard), stores))) == 1
    assert len(digested) == 1
    (tmp_path / "a_file").touch()  # where nothing can be noted, it is read all the same
    assert LocalShards(tiny_shards, tmp_path / "a_file" / "notes").path_of(shard).is_file()


def test_addresses_are_for_training(tmp_path, capsys):
    assert pack_guidance.main(["--data_dir", "s3://a/b", "--unpack", "--output_dir", str(tmp_path)]) == 2
    assert "--data_dir s3://a/b: is an address: give a folder, and copy" in capsys.readouterr().err


def test_names_in_a_shard_end_at_the_first_dot():
    assert member_name("a.b%", "poses/a.b%.npy") == "a%2Eb%25.pose.npy"
    assert member_name("a", "music_features/a/frame_1.npy") == "a.music.frame_1.npy"
    assert member_name("a", "music_features/meta.json") == "a.music.type.json"
    assert [id_of(key_of(name)) for name in ("a.b%", "%2E", "춤")] == ["a.b%", "%2E", "춤"]
