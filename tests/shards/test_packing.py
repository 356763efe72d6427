"""A data folder to shards and back; training from them gives the bits that the folder gives."""

import contextlib
import errno
import filecmp
import hashlib
import json
import shutil
import sqlite3
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


def test_a_shard_that_is_gone_is_packed_again(tiny_data, tmp_path, pack, capsys):
    shards = pack(tiny_data, tmp_path / "shards")
    content = (shards / "000000.tar").read_bytes()
    for damage in ((shards / "000000.tar").unlink, lambda: (shards / "000000.tar").write_bytes(content[:-9])):
        damage()
        pack(tiny_data, shards)
        assert (shards / "000000.tar").read_bytes() == content
    assert "up to date" not in capsys.readouterr().out


def test_files_of_others_are_not_lost(tiny_data, tmp_path, pack, capsys):
    out, kept = tmp_path / "out", ("notes.tmp", "a.tmp", "packing")
    (out / "packing").mkdir(parents=True)
    (out / "a.tmp").mkdir()
    (out / "notes.tmp").write_text("notes")
    (out / "packing" / "list.txt").write_text("boxes")
    flags = [*TYPES, "--data_dir", str(tiny_data), "--num_workers", "0", "--output_dir"]
    assert pack_guidance.main([*flags, str(out)]) == 2
    assert "packing: is of another program and would be lost; move it away" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == sorted(kept)
    shutil.rmtree(out / "packing")
    with contextlib.closing(sqlite3.connect(out / "index.sqlite")) as connection, connection:
        connection.execute("CREATE TABLE photos (name TEXT)")
    content = (out / "index.sqlite").read_bytes()
    assert pack_guidance.main([*flags, str(out)]) == 2
    assert (out / "index.sqlite").read_bytes() == content
    (out / "index.sqlite").unlink()
    pack(tiny_data, out)
    assert (out / "notes.tmp").read_text() == "notes" and (out / "a.tmp").is_dir()
    for size in (0, 40, 5000):  # cut short, it is ours still
        (out / "index.sqlite").write_bytes((out / "index.sqlite").read_bytes()[:size])
        pack(tiny_data, out)


def test_output_folders_that_do_not_do_are_named(tiny_data, tmp_path, capsys):
    (tmp_path / "a_file").touch()
    flags = [*TYPES, "--data_dir", str(tiny_data), "--num_workers", "0", "--output_dir"]
    for output_dir, said in (
        (tmp_path / "a_file", "a_file: cannot be written (File exists); give another --output_dir"),
        (tmp_path / "a_file" / "out", "out: cannot be written (Not a directory); give another"),
        (tiny_data, f"lies in the data folder {tiny_data}, which it would change; give a folder outside"),
        (tiny_data / "videos" / "out", "lies in the data folder"),
    ):
        assert pack_guidance.main([*flags, str(output_dir)]) == 2
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert not (tiny_data / "videos" / "out").exists()


def test_one_number_of_key_points_packs_tracks(tiny_data, capsys):
    flags = ["--data_dir", str(tiny_data), "--tracks_only", "--guidance_input_channels", "35", "134"]
    assert pack_guidance.main(flags) == 2
    assert "give one number with --tracks_only" in capsys.readouterr().err


def test_unpacking_writes_over_no_other_files(tiny_data, tiny_shards, tmp_path, capsys):
    out = shutil.copytree(tiny_data, tmp_path / "data")
    edited = out / "poses" / "dance_002" / "frame_003.json"
    edited.write_text("edited")
    flags = ["--data_dir", str(tiny_shards), "--unpack", "--num_workers", "0", "--output_dir"]
    assert pack_guidance.main([*flags, str(out)]) == 2
    said = f"error: {edited}: is there and is not the one of sample 'dance_002'; move it away, or give a new"
    assert said in capsys.readouterr().err
    assert edited.read_text() == "edited"


def test_an_unpacking_that_cannot_write_names_its_folder(tiny_shards, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shards.unpacking.whole_file", full)
    flags = ["--data_dir", str(tiny_shards), "--unpack", "--num_workers", "0", "--output_dir"]
    assert pack_guidance.main([*flags, str(tmp_path / "out")]) == 2
    assert f"error: {tmp_path / 'out'}: No space left on device; see to it" in capsys.readouterr().err


def test_shards_are_not_packed(tiny_shards, tmp_path, capsys):
    for more in (["--tracks_only"], [*TYPES, "--output_dir", str(tmp_path / "out")]):
        assert pack_guidance.main(["--data_dir", str(tiny_shards), *more]) == 2
        assert "has shards, which are packed already: give the data folder" in capsys.readouterr().err


def test_what_a_killed_run_left_is_no_other_programs(tiny_data, tmp_path, pack):
    out = tmp_path / "out"
    (out / "packing").mkdir(parents=True)
    for name in ("data_facts.sqlite-journal", f"000.tar.{'0' * 32}.{'0' * 8}.tmp", ".DS_Store"):
        (out / "packing" / name).touch()
    (out / "000000.tar.0123abcd.tmp").touch()
    pack(tiny_data, out)
    assert {path.name for path in out.iterdir()} == {"000000.tar", "index.sqlite", "data_report.json"}
