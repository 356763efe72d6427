"""The evaluation script, run in process: finished videos, a model, several evaluations, and wrong input."""

import dataclasses
import errno
import functools
import inspect
import json
import os
import re
import shutil
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

import evaluate_guidance
from datasets import VideoReader, write_video
from evaluation import sampling
from evaluation.evaluating import SampledVideos
from evaluation.networks.given import FILE_FLAGS
from evaluation.page import report
from evaluation.sampling import SamplingSettings
from models import ChampModel, FrozenEncoders, create_guidance_encoders
from pipelines.champ_pipeline import ChampPipeline
from training.objective import make_noise_scheduler

from .pipelines.tiny_pipeline import write_adapter

GUIDANCE = ["--guidance_types", "music", "pose", "--guidance_input_channels", "35", "134"]
FINISHED = ["--predictions", "{data}/videos", "--data_dir", "{data}"]
FEW = ["--metrics", "psnr", "l1", "dtssd", "hand_psnr", "--pose_estimator", "none"]


@pytest.fixture(scope="module", autouse=True)
def made_once():
    """A model is loaded and templates are compiled for the first run alone; losses are of one timestep."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((evaluate_guidance, "load_pipeline"), (report, "page_templates")):
            patch.setattr(module, name, functools.cache(getattr(module, name)))
        patch.setattr(sampling, "GapProtocol", functools.partial(sampling.GapProtocol, timesteps=(500,)))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory, write_data):
    return write_data(tmp_path_factory.mktemp("data"), num_videos=3)


@pytest.fixture(scope="module")
def predictions(data, tmp_path_factory):
    """The truth, a little darker."""
    folder = tmp_path_factory.mktemp("predictions")
    for path in (data / "videos").iterdir():
        frames = np.stack(list(VideoReader(path).iterate()))
        write_video(folder / path.name, frames - np.minimum(frames, 5), 8)
    return folder


def run(*flags) -> int:
    return evaluate_guidance.main([*map(str, flags), "--device", "cpu"])


def read(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_finished_videos_to_numbers_beside_floors(data, predictions, tmp_path, capsys):
    flags = ["--predictions", predictions, "--data_dir", data, "--output_dir", tmp_path, *GUIDANCE, *FEW]
    assert run(*flags) == 0
    found = read(tmp_path)
    assert set(found) == {"protocol", "metrics", "floors", "samples", "skipped"}
    assert set(found["metrics"]) == {"psnr", "l1", "dtssd", "hand_psnr"}
    assert 25 < found["metrics"]["psnr"]["value"] < 45 and 2 < found["metrics"]["l1"]["value"] < 8
    assert set(found["samples"]) == {"dance_001", "dance_002", "dance_003"}
    for floor in ("reference_repeated", "another_video"):
        assert found["floors"][floor]["psnr"] < found["metrics"]["psnr"]["value"]
    assert (tmp_path / "report.html").is_file() and (tmp_path / "table.md").is_file()
    assert "3 clips" in capsys.readouterr().out
    # The same command measures nothing anew.
    assert run(*flags) == 0
    assert "3 of 3 clips are done already" in capsys.readouterr().err and read(tmp_path) == found


def test_videos_of_other_poses_than_the_datas(data, predictions, tmp_path):
    """Videos are held against the poses that drove them, and the truth against its own."""
    (tmp_path / "tracks").mkdir()
    for name in ("dance_001", "dance_002"):
        np.save(tmp_path / "tracks" / f"{name}.npy", np.full((12, 134, 3), (0.5, 0.5, 1), np.float32))
    flags = ["--predictions", predictions, "--data_dir", data, *GUIDANCE, "--pose_estimator", "none"]
    flags += ["--metrics", "background_flicker", "--num_clips", 2, "--floors", "truth_itself"]
    for name, words in (("own", []), ("driven", ["--driving_poses", tmp_path / "tracks"])):
        assert run(*flags, *words, "--output_dir", tmp_path / name) == 0
    own, driven = read(tmp_path / "own"), read(tmp_path / "driven")
    values = [found["metrics"]["background_flicker"]["value"] for found in (own, driven)]
    assert values[1] > values[0] + 1 and own["floors"] == driven["floors"]
    assert "driving_poses" not in own["protocol"]
    assert driven["protocol"]["driving_poses"] == str(tmp_path / "tracks")


def test_an_evaluation_that_was_stopped_goes_on(data, predictions, tmp_path, capsys):
    flags = ["--predictions", predictions, "--data_dir", data, *FEW, "--floors", "another_video"]
    assert run(*flags, "--output_dir", tmp_path / "whole") == 0
    assert run(*flags, "--output_dir", tmp_path / "parts", "--num_clips", 2) == 0
    (tmp_path / "parts" / "clips" / "dance_002.json").unlink()
    capsys.readouterr()
    assert run(*flags, "--output_dir", tmp_path / "parts") == 0
    assert "1 of 3 clips are done already" in capsys.readouterr().err
    assert read(tmp_path / "parts") == read(tmp_path / "whole")


def test_another_next_video_is_another_floor(data, predictions, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    flags = ["--predictions", predictions, "--data_dir", root, "--output_dir", tmp_path / "out", *FEW]
    flags += ["--num_clips", 1, "--floors", "another_video"]
    assert run(*flags) == 0
    before = read(tmp_path / "out")["floors"]
    shutil.copy(root / "videos" / "dance_003.mp4", root / "videos" / "dance_002.mp4")
    assert run(*flags) == 0
    assert "done already" not in capsys.readouterr().err
    assert read(tmp_path / "out")["floors"] != before


def test_a_vae_that_is_given_later_makes_its_floor(data, predictions, tiny_base, tmp_path):
    flags = ["--predictions", predictions, "--data_dir", data, "--output_dir", tmp_path, *FEW]
    flags += ["--num_clips", 1, "--num_frames", 2, "--floors", "vae_round_trip"]
    assert run(*flags) == 0 and read(tmp_path)["floors"] == {}
    assert "--vae_model_name_or_path" in read(tmp_path)["skipped"]["vae_round_trip"]
    assert run(*flags, "--vae_model_name_or_path", tiny_base) == 0
    assert "psnr" in read(tmp_path)["floors"]["vae_round_trip"]


def test_broken_clips_have_a_line_each_and_the_others_are_evaluated(data, predictions, tmp_path, capsys):
    folder = tmp_path / "predictions"
    shutil.copytree(predictions, folder)
    (folder / "dance_001.mp4").unlink()
    whole = (folder / "dance_002.mp4").read_bytes()
    (folder / "dance_002.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    flags = ["--predictions", folder, "--data_dir", data, "--output_dir", tmp_path / "out"]
    assert run(*flags, *FEW, "--floors") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 2 and "dance_001.mp4: no such prediction" in lines[0]
    assert "dance_002.mp4" in lines[1] and "replace the file" in lines[1]
    found = read(tmp_path / "out")
    assert list(found["samples"]) == ["dance_003"]
    assert set(found["protocol"]["left_out"]) == {"dance_001", "dance_002"}
    assert "--guidance_types pose" in found["skipped"]["hand_psnr"]


def test_comparison_of_two_evaluations(data, predictions, tmp_path, capsys):
    for name, folder in (("first", predictions), ("second", data / "videos")):
        flags = ["--predictions", folder, "--data_dir", data, "--output_dir", tmp_path / name, *FEW]
        assert run(*flags, "--floors") == 0
    flags = ["--compare", tmp_path / "first", tmp_path / "second", "--output_dir", tmp_path / "both"]
    assert run(*flags) == 0
    assert "second against first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --model_path, --predictions and --compare"),
        (["--predictions", "x", "--model_path", "y"], "not --model_path and --predictions"),
        ([*FINISHED, "--lora", "x"], "--lora: there is no --model_path whose model it changes"),
        (["--predictions", "x"], "--predictions needs --data_dir"),
        (["--predictions", "nowhere", "--data_dir", "{data}"], "nowhere: no such folder"),
        (["--predictions", "{data}/reference_images", "--data_dir", "{data}"], "in it, only dance_001.png"),
        (["--predictions", "{data}/videos", "--data_dir", "{data}", "--guidance_types", "pose"], "needs one"),
        (["--predictions", "{data}/videos", "--data_dir", "{data}", "--lpips_path", "x"], "go together"),
        ([*FINISHED, "--driving_poses", "x"], "x: no such folder"),
        ([*FINISHED, "--driving_poses", "{data}/poses"], "add pose"),
        (["--model_path", "{data}", "--data_dir", "{data}"], "has no model_index.json"),
        (["--model_path", "{data}/checkpoint-5", "--data_dir", "{data}"], "no such folder"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(flags, message, data, tmp_path, capsys):
    flags = [flag.replace("{data}", str(data)) for flag in flags]
    assert run(*flags, "--output_dir", tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_line(data, predictions, tmp_path, monkeypatch, capsys):
    def refuse(path):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(evaluate_guidance.Path, "touch", refuse)
    assert run("--predictions", predictions, "--data_dir", data, "--output_dir", tmp_path, *FEW) == 2
    error = capsys.readouterr().err
    assert "cannot be written (Read-only file system); give another" in error and error.count("\n") == 1


def test_an_empty_folder_of_predictions(data, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run("--predictions", tmp_path / "empty", "--data_dir", data, "--output_dir", tmp_path / "out") == 2
    assert "no .mp4 in it, nothing at all" in capsys.readouterr().err


# ---- a model ----


@pytest.fixture(scope="module")
def final(tiny_base, tmp_path_factory):
    """A model of random weights in the folder that training would write."""
    torch.manual_seed(0)
    encoders = create_guidance_encoders(["music", "pose"], [35, 134], 32, block_out_channels=(8, 8, 8, 32))
    model = ChampModel.from_pretrained_sd(tiny_base, encoders)
    pipeline = ChampPipeline.from_parts(
        model, FrozenEncoders.from_pretrained(tiny_base), make_noise_scheduler(),
        height=64, width=64, sequence_length=4, frame_rate=8.0,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("run") / "final"
    pipeline.save_pretrained(path)
    return path


def test_a_model_is_sampled_and_measured(final, data, tmp_path):
    flags = ["--model_path", final, "--data_dir", data, "--output_dir", tmp_path, "--num_inference_steps", 1]
    flags += ["--metrics", "psnr", "seam_ratio", "cmmd", "drift", "guidance_gap", "--pose_estimator", "none"]
    assert run(*flags, "--num_clips", 2, "--num_frames", 7, "--guidance_scale", 1) == 0
    found = read(tmp_path)
    assert {"psnr", "seam_ratio", "cmmd", "drift", "guidance_gap/pose"} <= set(found["metrics"])
    assert set(found["floors"]) == {
        "reference_repeated", "another_pose", "vae_round_trip", "another_video", "truth_itself",
    }  # fmt: skip
    kept = json.loads((tmp_path / "clips" / "dance_001.json").read_text())
    assert kept["borders"] == [3] and len(kept["curves"]["psnr"]) == 7
    assert len(VideoReader(tmp_path / "videos" / "dance_001.mp4")) == 7
    # The videos, evaluated as those of another model, have the same numbers but for their encoding.
    flags = ["--predictions", tmp_path / "videos", "--data_dir", data, "--output_dir", tmp_path / "again"]
    assert run(*flags, *FEW, "--num_clips", 2, "--num_frames", 7, "--floors") == 0
    assert read(tmp_path / "again")["metrics"]["psnr"]["value"] == pytest.approx(
        found["metrics"]["psnr"]["value"], abs=1
    )


def test_a_model_is_sampled_as_the_flags_say(final, data, tmp_path):
    flags = ["--model_path", final, "--data_dir", data, "--output_dir", tmp_path, "--num_inference_steps", 2]
    flags += ["--metrics", "seam_ratio", "guidance_gap", "--pose_estimator", "none", "--floors"]
    flags += ["--scheduler", "unipc", "--guidance_scales", "pose=0.5", "--guidance_interval", 0, 5]
    assert run(*flags, "--window_grids", 2, "--shared_noise", "--num_clips", 1, "--num_frames", 7) == 0
    protocol = read(tmp_path)["protocol"]["sampling"]
    assert {name: protocol[name] for name in sorted(protocol) if protocol[name] is not None} == {
        "guidance_interval": [0, 5], "guidance_scale": 3.5, "guidance_scales": [["pose", 0.5]],
        "mixed_precision": "no", "num_inference_steps": 2, "scheduler": "unipc", "seed": 42,
        "shared_noise": True, "window_grids": 2,
    }  # fmt: skip
    kept = json.loads((tmp_path / "clips" / "dance_001.json").read_text())
    assert kept["borders"] == [1, 2, 3]  # of the second grid, which the last step has
    with av.open(str(tmp_path / "videos" / "dance_001.mp4")) as container:
        assert container.metadata["comment"].startswith("Generated video")
    # An evaluation from before these flags is still found: what is as then is not part of its protocol.
    later = {"scheduler", "guidance_scales", "guidance_interval", "window_grids", "shared_noise"}
    later |= {"lora", "lora_scale"}
    assert later.isdisjoint(SamplingSettings().protocol)


def test_adapters_are_part_of_the_protocol(final, data, tmp_path):
    adapter = write_adapter(final, tmp_path / "dancer", "unet")
    model = shutil.copytree(final, tmp_path / "final")  # one of its own, for models are loaded once here
    flags = ["--model_path", model, "--data_dir", data, "--output_dir", tmp_path / "out", "--floors"]
    flags += ["--metrics", "psnr", "--pose_estimator", "none", "--num_clips", 1, "--num_frames", 2]
    assert run(*flags, "--num_inference_steps", 1, "--lora", adapter, "--lora_scale", 0.5) == 0
    protocol = read(tmp_path / "out")["protocol"]["sampling"]
    assert protocol["lora"] == [str(adapter)] and protocol["lora_scale"] == [0.5]
    sampler = SimpleNamespace(path=model, settings=SamplingSettings(lora=[str(adapter)]))
    assert SampledVideos(sampler, tmp_path).files("dance_001") == [model, adapter]  # changed, all is anew


def test_gaps_of_clips_of_different_lengths(final, data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    frames = np.stack(list(VideoReader(root / "videos" / "dance_001.mp4").iterate()))
    write_video(root / "videos" / "dance_001.mp4", frames[:3], 8)  # fewer than in training
    for path in (*root.glob("poses/dance_001/*"), *root.glob("music_features/dance_001/*")):
        if int(path.stem[-3:]) >= 3:
            path.unlink()
    flags = ["--model_path", final, "--data_dir", root, "--output_dir", tmp_path / "out"]
    flags += ["--metrics", "guidance_gap", "--pose_estimator", "none", "--floors"]
    flags += ["--num_clips", 2, "--num_inference_steps", 1, "--guidance_scale", 1]
    assert run(*flags) == 0
    assert "guidance_gap/music" in read(tmp_path / "out")["metrics"]


def test_a_clip_is_measured_anew_where_what_it_depends_on_is_another(final, data, tmp_path, capsys):
    model, again = tmp_path / "final", tmp_path / "data"
    shutil.copytree(final, model)
    shutil.copytree(data, again)
    flags = ["--model_path", model, "--data_dir", again, "--output_dir", tmp_path / "out", "--num_frames", 2]
    flags += ["--metrics", "psnr", "psnr", "--pose_estimator", "none", "--num_inference_steps", 1]
    flags += ["--guidance_scale", 1, "--floors", "another_video", "--num_clips", 1]

    def is_kept() -> bool:
        assert run(*flags) == 0
        return "1 of 1 clips are done already" in capsys.readouterr().err

    assert [is_kept(), is_kept()] == [False, True]
    kept = json.loads((tmp_path / "out" / "clips" / "dance_001.json").read_text())
    assert len(kept["curves"]["psnr"]) == 2  # once, as often as it is named
    os.utime(model / "unet" / "config.json")  # trained further, to the same folder
    assert [is_kept(), is_kept()] == [False, True]
    os.utime(again / "videos" / "dance_002.mp4")  # the other video of its floor
    assert [is_kept(), is_kept()] == [False, True]
    for folder in ("poses", "music_features"):
        shutil.copytree(again / folder / "dance_003", again / folder / "dance_000")
    for folder, ending in (("videos", "mp4"), ("reference_images", "png")):
        shutil.copy(again / folder / f"dance_003.{ending}", again / folder / f"dance_000.{ending}")
    flags[-1] = 2
    assert run(*flags) == 0  # dance_001 is another place's now, and has another noise
    assert "done already" not in capsys.readouterr().err


def test_a_model_says_what_a_clip_lacks(final, tmp_path, write_data, capsys):
    root = write_data(tmp_path / "data", num_videos=2)
    np.save(root / "music_features" / "dance_001" / "frame_003.npy", np.full(35, np.nan, np.float32))
    flags = ["--model_path", final, "--data_dir", root, "--output_dir", tmp_path / "out", "--num_frames", 4]
    assert run(*flags, *FEW, "--num_inference_steps", 1, "--guidance_scale", 1, "--floors") == 2
    assert "frame_003.npy" in capsys.readouterr().err
    assert list(read(tmp_path / "out")["samples"]) == ["dance_002"]


def test_every_flag_is_used():
    used = inspect.getsource(evaluate_guidance)
    known = {flag for flags in FILE_FLAGS.values() for flag in flags}
    known |= {field.name for field in dataclasses.fields(SamplingSettings)}
    flags = {action.dest for action in evaluate_guidance.build_parser()._actions} - {"help"} - known
    assert [flag for flag in sorted(flags) if not re.search(rf"arguments\.{flag}\b", used)] == []
