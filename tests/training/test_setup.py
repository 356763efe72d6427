"""A run before its first step: settings and data that are refused or told of, and what trains nothing."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest

from datasets.checking.data_report import DataReport, Fault
from system.folder_lock import FolderLock
from tests.training.runs import run
from training import data
from training.planning import dry_run
from training.settings.parsing import parse_arguments


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--mixed_precision", "fp16"], "fp16 needs a GPU: use --mixed_precision bf16 or no"),
        (["--use_xformers"], "needs xformers: run `pip install xformers`"),
        (["--use_8bit_adam"], "--use_8bit_adam needs bitsandbytes: run `pip install bitsandbytes`"),
        (["--report_to", "wandb"], "--report_to wandb needs wandb: run `pip install wandb`"),
        (["--pretrained_model_name_or_path", "./no/base"], "./no/base does not exist"),
        (["--vae_model_name_or_path", "./no/vae"], "./no/vae does not exist"),
        (["--champ_checkpoint_dir", "./no/champ"], "no/champ does not exist"),
        (["--motion_module_path", "./no/motion.ckpt"], "no/motion.ckpt"),
        (["--train_data_dir", "./no/data"], "no such data folder"),
        (["--validation_data_dir", "./no/data"], "no such data folder"),
        (["--guidance_input_channels", "1", "134"], "set music's --guidance_input_channels to 35"),
        (["--guidance_types", "music", "depth"], "depth"),
        (["--resume_from_checkpoint", "checkpoint-7"], "checkpoint-7: no such folder"),
        (["--sequence_length", "13"], "a clip needs 13"),
        (["--unknown_flag", "1"], "unrecognized arguments: --unknown_flag 1"),
        (["--loss", "nothing"], "expected MODULE:NAME"),
        (["--validation_metrics", "fvd"], "--validation_metrics fvd: choose from psnr, ssim"),
        (["--train_data_format", "image", "--keep_best", "dtssd"], "--keep_best dtssd: needs clips of at"),
    ],
)
def test_wrong_settings_are_one_message(flags, more, message, capsys):
    assert run(flags, *more) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_validation_on_the_training_videos_is_told(flags, tiny_data, capsys):
    assert run(flags, "--validation_data_dir", tiny_data, "--max_train_steps", 1) == 0
    assert "the training videos: give others for numbers that mean something" in capsys.readouterr().err


def test_check_data_and_dry_run_train_nothing(flags, tmp_path, capsys):
    assert run(flags, "--check_data") == 0
    assert "3 samples checked, no faults" in capsys.readouterr().out
    assert run(flags, "--check_data", "--guidance_input_channels", 36, 134) == 2
    with pytest.MonkeyPatch.context() as patched:  # the simulated step is asked for once, below
        patched.setattr(dry_run, "memory_lines", lambda *_, **__: [])
        assert run(flags, "--dry_run", "--validation_data_dir", parse_arguments(flags).train_data_dir) == 0
    capsys.readouterr()
    assert run(flags, "--dry_run", "--keep_best", "val_loss") == 0
    plan = capsys.readouterr().out
    for words in ("learning_rate: 0.0001", "motion_modules", "guidance/pose", "[1, 4, 134, 3] float32",
                  "3 steps per epoch", "memory per process", "GiB per checkpoint"):  # fmt: skip
        assert words in plan
    assert " and checkpoint-best, one more while saving" in plan
    assert not list((tmp_path / "out").glob("checkpoint-*")) and not (tmp_path / "out" / "final").exists()


def test_faulty_samples_can_be_left_out(flags, tmp_path, tiny_data, capsys, monkeypatch):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_data, broken)
    (broken / "music_features" / "dance_002" / "frame_003.npy").write_bytes(b"no array")
    more = ("--train_data_dir", broken, "--max_train_steps", 1)
    assert run(flags, *more) == 2
    assert "frame_003.npy" in capsys.readouterr().err
    assert run(flags, *more, "--skip_invalid") == 0
    assert "left out: dance_002" in capsys.readouterr().err

    arguments = parse_arguments([*flags, *map(str, more), "--skip_invalid"])
    keywords = data.clip_keywords(arguments, 0, single_frames=False)
    folders = data.DataFolders(arguments, arguments.output_dir, keywords)
    main = folders.dataset(broken, SimpleNamespace(is_main_process=True))
    monkeypatch.setattr(data, "broadcast_object_list", lambda mine: [main.left_out])
    other = folders.dataset(broken, SimpleNamespace(is_main_process=False))
    assert other.sample_ids == main.sample_ids == ["dance_001", "dance_003"]
    assert other.left_out == main.left_out


def test_data_is_checked_once_until_it_changes(flags, tmp_path, tiny_data, capsys, monkeypatch):
    monkeypatch.setattr(dry_run, "memory_lines", lambda *_, **__: [])  # takes its time, and is not asked here
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    more, report_path = ("--train_data_dir", data), tmp_path / "out" / "data_report.json"
    assert run(flags, *more, "--dry_run") == 0
    console = capsys.readouterr().err
    assert "3 samples checked, no faults; to look at: " in console and "unchanged" not in console
    assert (tmp_path / "out" / "data_report.html").is_file()
    written = report_path.stat().st_mtime_ns
    report_path.with_suffix(".html").unlink()
    assert run(flags, *more, "--dry_run") == 0
    assert "no faults (unchanged since the last check)" in capsys.readouterr().err
    assert report_path.stat().st_mtime_ns == written
    assert report_path.with_suffix(".html").is_file()  # the console points to it
    assert run(flags, *more, "--check_data") == 0
    assert report_path.stat().st_mtime_ns > written

    (data / "music_features" / "dance_002" / "frame_003.npy").write_bytes(b"no array")
    for unchanged in (False, True):  # what was found stops the next run too
        assert run(flags, *more, "--dry_run") == 2
        console = capsys.readouterr().err
        assert "frame_003.npy: holds pickled objects or no array" in console
        assert ("(unchanged since the last check)" in console) == unchanged


def test_ctrl_c_before_the_training_is_one_line(flags, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(data.DataFolders, "report", interrupt)
    assert run(flags) == 130
    *_, last = capsys.readouterr().err.strip().splitlines()  # after the settings' sources and the processes
    assert last == "train_guidance.py: stopped"


def test_with_nothing_left_a_run_stops(flags, tmp_path, tiny_data, capsys):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    for path in data.glob("videos/*"):
        path.write_bytes(b"no video")
    assert run(flags, "--train_data_dir", data, "--skip_invalid") == 2
    console = capsys.readouterr().err
    assert "is not a readable video" in console and "no sample is left to train on" in console


def test_errors_are_shown_before_warnings(flags, monkeypatch, capsys):
    def checked(data_root, *_, **__):
        report = DataReport(str(data_root))
        report.faults = [Fault(f"dance_{n}", f"w{n}", "is small", "enlarge it", "warning") for n in range(12)]
        report.faults.append(Fault("dance_9", "video", "is cut off", "bring it back"))
        return report

    monkeypatch.setattr(data, "check_data", checked)
    assert run(flags) == 2
    faults = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "warning"))]
    assert faults[0] == "error: video: is cut off; bring it back"


def test_a_second_run_in_one_folder_is_refused(flags, tmp_path, repository, capsys):
    (tmp_path / "out").mkdir()
    lock = FolderLock(tmp_path / "out", tmp_path / "out" / ".lock", holder="run", fix="wait")
    assert run(flags) == 2
    message = "out: another train_guidance.py is writing there; wait until it ends"
    assert message in capsys.readouterr().err
    two = [sys.executable, "scripts/launch.py", "--standalone", "--nproc_per_node", "2", "train_guidance.py"]
    result = subprocess.run([*two, *flags], cwd=repository, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2 and message in result.stderr
    assert "Traceback (most recent call last)" not in result.stderr
    lock.release()
