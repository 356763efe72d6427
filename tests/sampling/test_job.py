"""Whole jobs of raw input: what is made of a video and kept, and what errors and requests to stop leave."""

import errno
import json
import os
import re

import cv2
import numpy as np
import pytest

import sample_guidance
from datasets import VideoReader
from datasets.data_folder import recorded_recipe
from datasets.media.sound import read_audio
from demo.dancer import draw_lots, key_points, standing
from pipelines.champ_pipeline import ChampPipeline
from pipelines.loading import load_pipeline
from preparation.settings import Settings
from sampling.guidance import save_made
from sampling.job import sample_video
from sampling.making import Rows
from sampling.outputs import ClipEncoder, tidy_beside
from system.errors import Cancelled, DataError

from ..preparation.conftest import MARKER

SAVED = {"poses": "poses", "music": "music_features"}  # {flag: folder of what --save_guidance has kept}


def entries(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_video_drives_with_its_sound(flags, run, capsys):
    assert run(flags | {"start_seconds": 0.5, "panel": None}) == 0
    video = VideoReader(flags["output"])
    assert len(video) == 8 and video.frame_rate == pytest.approx(8)
    sound, rate = read_audio(flags["output"], 0, 1)
    loud = np.flatnonzero(np.abs(sound).max(axis=0) > 0.05) / rate
    assert loud[0] < 0.02 and np.abs(loud - 0.5).min() < 0.02  # its clicks are at 0.5, 1 and 1.5 s
    assert entries(flags["output"].parent) == ["clip.mp4", "clip_panel.mp4"]
    assert "note" not in capsys.readouterr().out


def test_of_what_does_not_fit_the_folder_nothing_is_saved(tmp_path):
    music, poses = Rows(np.zeros((2, 3)), 8.0), np.zeros((2, 134, 3))
    save_made(tmp_path, "one", {"music": music, "pose": Rows(poses, 8.0, (96, 64))}, {"notes": []})
    before = entries(tmp_path)
    with pytest.raises(DataError, match="poses.meta.json: states another rate or frame"):
        save_made(tmp_path, "two", {"music": music, "pose": Rows(poses, 8.0, (64, 64))}, {"notes": []})
    assert entries(tmp_path) == before


def test_large_maps_are_read_part_by_part(save_model, flags, run, written, tmp_path, monkeypatch):
    depth = tmp_path / "depth"
    depth.mkdir()
    for frame in range(10):
        level = np.full((32, 32), 20 * frame, np.uint8)
        cv2.imwrite(str(depth / f"frame_{frame:03d}.png"), level)
    flags |= {"model_path": save_model(("depth",), (1,)), "driving_video": False, "num_seconds": False}
    flags |= {"guidance": f"depth={depth}", "retarget": False, "panel": None}
    assert run(flags) == 0
    monkeypatch.setattr("sampling.guidance.MOST_MAP_BYTES", 0)
    assert run(flags | {"output": tmp_path / "out" / "parts.mp4"}) == 0
    frames = {name: np.concatenate(parts) for name, parts in written.items()}
    for name in ("clip", "clip_panel"):
        np.testing.assert_array_equal(frames[f"{name}.mp4"], frames[f"{name.replace('clip', 'parts')}.mp4"])


def test_a_longer_song_than_the_part_of_the_video(flags, raw, run):
    assert run(flags | {"song": raw}) == 0  # 2 s of it, beside 1 s of the video
    assert len(VideoReader(flags["output"])) == 8
    sound, rate = read_audio(flags["output"], 0, 2)
    assert sound.shape[1] / rate == pytest.approx(1, abs=0.05)


def test_a_fault_of_what_is_made_names_what_it_is_made_of(flags, run, capsys):
    assert run(flags | {"num_frames": 99}) == 2
    assert f"error: {flags['driving_video']}: 8 rows of pose give 8 frames, 99" in capsys.readouterr().err


def test_what_is_saved_makes_the_same_video(flags, run, written, tmp_path, capsys):
    data = tmp_path / "data"
    assert run(flags | {"save_guidance": data, "num_seconds": 1.5, "smooth_poses": None}) == 0
    assert entries(data) == [
        "metadata", "metadata/clip.json", "music_features", "music_features/clip.npy",
        "music_features/meta.json", "poses", "poses/clip.npy", "poses/meta.json",
    ]  # fmt: skip
    again = flags | {"driving_video": False, "num_seconds": False, "retarget": False}
    again |= {name: data / folder / "clip.npy" for name, folder in SAVED.items()}
    again |= {"output": tmp_path / "out" / "again.mp4"}
    assert run(again) == 0
    frames = {name: np.concatenate(parts) for name, parts in written.items()}
    assert frames["clip.mp4"].shape == (12, 64, 64, 3)
    np.testing.assert_array_equal(frames["clip.mp4"], frames["again.mp4"])
    facts = json.loads((data / "metadata" / "clip.json").read_text())
    assert facts["source"]["file"] == "dance.mp4" and facts["size"] == [96, 64]
    assert facts["frame_rate"] == 8 and facts["num_frames"] == 12 and facts["notes"] == []
    assert recorded_recipe(data, ["clip"]) == f"{MARKER}:level"
    assert recorded_recipe(data, ["clip"], "pose") == f"{MARKER}:find_markers"
    # Now of other recipes than the model's.
    facts |= {"poses": {"name": "dwpose"}}
    (data / "metadata" / "clip.json").write_text(json.dumps(facts))
    assert run(again | {"overwrite": None}) == 0
    assert "clip.npy: poses of dwpose, the model was trained with those of" in capsys.readouterr().out
    facts["music_features"]["name"] = "aist35"
    (data / "metadata" / "clip.json").write_text(json.dumps(facts))
    assert run(again | {"overwrite": None}) == 2
    assert "clip.npy: its features are aist35, the model was trained with" in capsys.readouterr().err
    other_rate = {"save_guidance": data, "frame_rate": 12, "overwrite": None}
    assert run(flags | {"save_guidance": data}) == 2 and run(flags | other_rate) == 2


def test_a_dance_goes_onto_the_body_of_the_reference(flags, run, monkeypatch, tmp_path, capsys):
    dancers = [draw_lots(np.random.default_rng(seed)) for seed in (1, 2)]
    driving, reference = (key_points(dancer, standing(dancer)) for dancer in dancers)
    follow = lambda estimator, frames, rate: np.stack([driving for _ in frames()])  # noqa: E731
    monkeypatch.setattr("sampling.driving_video.follow_dancer", follow)
    monkeypatch.setattr("sampling.making.pose_of_image", lambda image, path, settings: reference)
    data = {"save_guidance": tmp_path / "data", "num_seconds": 0.5, "guidance_types": "pose"}
    assert run(flags | {"retarget": False} | data) == 0  # by itself
    fitted = np.load(tmp_path / "data" / "poses" / "clip.npy")
    length = lambda points: np.linalg.norm(points[8, :2] - points[10, :2])  # noqa: E731 (hip to ankle)
    # The driving frame is 64 x 96, so its dancer is wide; the reference's proportions count.
    assert length(fitted[0]) == pytest.approx(length(reference), rel=0.25)
    assert fitted[0, [10, 13], 1].max() == pytest.approx(reference[[10, 13], 1].max(), abs=0.01)
    given = {"driving_video": False, "num_seconds": False, "retarget": "auto"}
    given |= {"poses": tmp_path / "data" / "poses" / "clip.npy"}
    assert run(flags | given | {"overwrite": None}) == 0
    monkeypatch.setattr(
        "sampling.making.pose_of_image", lambda *_: np.where(np.arange(134)[:, None] < 8, reference, 0)
    )
    assert run(flags | {"retarget": "auto", "overwrite": None}) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "dance_001.png: reference pose: " in error and "--retarget none" in error


def test_a_page_keeps_the_model_and_may_stop(flags, words, tmp_path):
    pipeline, seen = load_pipeline(flags["model_path"]), []
    arguments = sample_guidance.parse_arguments(words(flags | {"scheduler": "unipc", "panel": None}))
    sampled = sample_video(arguments, pipeline=pipeline, on_progress=lambda *step: seen.append(step))
    assert [path.name for path in sampled.paths] == ["clip.mp4", "clip_panel.mp4"]
    assert sampled.summary.startswith("8 frames of 64x64, 8 per second")
    assert list(dict.fromkeys(text for text, *_ in seen)) == ["finding the poses", "sampling", "writing"]
    assert all(0 <= done <= total for _, done, total in seen)
    assert type(pipeline.scheduler).__name__ == "DDIMScheduler"
    before = {path: path.read_bytes() for path in sampled.paths}
    arguments = sample_guidance.parse_arguments(words(flags | {"overwrite": None, "panel": None}))
    for stop in ("finding the poses", "sampling", "writing"):

        def cancel(text, done, total, stop=stop):
            if text == stop and done:
                raise Cancelled

        with pytest.raises(Cancelled):
            sample_video(arguments, pipeline=pipeline, on_progress=cancel)
        assert {path: path.read_bytes() for path in sampled.paths} == before
        assert len(entries(flags["output"].parent)) == 2


def test_a_full_disk_in_mid_write_is_one_line(flags, run, monkeypatch, capsys):
    original, calls = ClipEncoder.write, []

    def write(self, frame, seconds):
        calls.append(1)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, frame, seconds)

    monkeypatch.setattr(ClipEncoder, "write", write)
    assert run(flags | {"panel": None}) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.endswith("the disk is full; free some space and run the same command again")
    assert entries(flags["output"].parent) == []


def test_what_a_killed_run_left_goes_with_the_next(tmp_path):
    folder, notes = tmp_path, []
    old = [folder / ".clip.mp4.ab_12xyz.tmp", folder / "clip.mp4.0123abcd.tmp"]
    kept = [folder / "clip.mp4.fresh123.tmp", folder / "other.mp4.0123abcd.tmp", folder / "clip.mp4.tmp"]
    old[0].mkdir()
    for path in (old[1], *kept):
        path.write_bytes(b"0")
    for path in (*old, *kept[1:]):
        os.utime(path, (0, 0))
    tidy_beside(folder / "clip.mp4", notes.append)
    assert entries(folder) == sorted(path.name for path in kept)
    assert len(notes) == 2 and "of an earlier run that was stopped while it wrote" in notes[0]


def test_the_flags_of_solvers_reach_the_pipeline(flags, run, monkeypatch):
    original, asked = ChampPipeline.__call__, {}

    def call(self, *arguments, **settings):
        asked.update(settings, scheduler=type(self.scheduler).__name__)
        return original(self, *arguments, **settings)

    monkeypatch.setattr(ChampPipeline, "__call__", call)
    compiled = lambda unets, say, training: asked.update(compiled=len(unets), training=training)  # noqa: E731
    monkeypatch.setattr("sampling.job.compile_blocks", compiled)
    solver = {
        "scheduler": "dpmsolver++", "guidance_scales": ["pose=0.5", "music=1"], "window_grids": 2,
        "guidance_interval": [0.5, "inf"], "shared_noise": None, "num_inference_steps": 2, "compile": None,
    }  # fmt: skip
    assert run(flags | solver) == 0
    assert asked["scheduler"] == "DPMSolverMultistepScheduler" and asked["window_grids"] == 2
    assert asked["guidance_scales"] == {"pose": 0.5, "music": 1.0} and asked["shared_noise"] is True
    assert asked["guidance_interval"] == (0.5, float("inf"))
    assert (asked["compiled"], asked["training"]) == (1, False)


WRONG = {
    "text named .mp4": ({"driving_video": "{root}/text.mp4"}, "text.mp4: is not a readable video"),
    "no such video": ({"driving_video": "{root}/none.mp4"}, "none.mp4: no such video file"),
    "no sound": ({"driving_video": "{root}/mute.mp4"}, "has no sound, and the model was trained with music"),
    "nobody": ({"driving_video": "{root}/empty.mp4"}, "empty.mp4: no person is found in it"),
    "a late start": ({"start_seconds": 3}, "lasts 2.00 s, --start_seconds is 3; choose an earlier start"),
    "a picture with no person": ({"retarget": "auto"}, "dance_001.png: no person is found.*--retarget none"),
    "the video as output": ({"driving_video": "{root}/out/clip.mp4"}, "the file of --driving_video too"),
    "poses too": ({"poses": "x"}, "not allowed with argument"),
    "a recipe that is lost": ({"model_path": "{other}"}, "music features are gone.py:a, which cannot"),
    "features without a sound": (
        {"model_path": "{demo}", "guidance_types": "music"},
        "demo35, which are not made of a sound: give --music or --song, or .*--guidance_types pose",
    ),
    "poses without an estimator": (
        {"model_path": "{demo}", "guidance_types": "pose"},
        "poses are demo134, which no estimator finds .*: give --poses, or .*--pose_estimator mediapipe",
    ),
    "no folder of DWPose": ({"pose_estimator": "dwpose"}, "give --dwpose_dir"),
    "types of no video": ({"driving_video": False, "retarget": False, "poses": "x", "guidance_types": "pose"},
                          "--guidance_types: there is no --driving_video"),
    "nothing to retarget": ({"driving_video": False, "song": "x", "retarget": "auto"}, "there is no --poses"),
    "nothing to save": (
        {"driving_video": False, "num_seconds": False, "poses": "x", "save_guidance": "y"},
        "--save_guidance: there is no --driving_video, --song or --music_to_pose_path",
    ),
    "no scale": ({"guidance_scales": "pose"}, "pose: expected TYPE=S"),
    "a scale of nothing": ({"guidance_scales": "depth=1"}, "depth: is none of the guidance that is given"),
    "too long windows": ({"context_frames": 33}, "1 to 32 frames"),
    "a size that is known": ({"pose_size": [64, 64]}, "--driving_video states its own"),
    "a scale twice": ({"guidance_scales": ["pose=1", "pose=2"]}, "a type is given twice"),
    "an empty interval": ({"guidance_interval": [2, 1]}, "LOW must be less than HIGH"),
    "an interval of words": ({"guidance_interval": ["a", 1]}, "invalid float value: .a."),
}  # fmt: skip


@pytest.fixture(scope="module")
def wrong_inputs(tmp_path_factory, write_raw, save_model):
    root = tmp_path_factory.mktemp("wrong")
    (root / "text.mp4").write_text("this is no video")
    write_raw(root / "mute.mp4", click_seconds=None)
    write_raw(root / "empty.mp4", frames=[np.full((96, 64, 3), 60, np.uint8)] * 4, click_seconds=[0.1])
    return {"root": root, "other": save_model(music_recipe="gone.py:a"),
            "demo": save_model(music_recipe="demo35", pose_recipe="demo134")}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_input_is_one_line(flags, run, wrong_inputs, case, capsys, monkeypatch):
    # Whoever looks at the picture finds no red square in it.
    monkeypatch.setattr("sampling.making.Settings", lambda: Settings(pose_estimator=f"{MARKER}:find_markers"))
    changes, message = WRONG[case]
    flags |= {"output": wrong_inputs["root"] / "out" / "clip.mp4"}
    fill = lambda value: value.format(**wrong_inputs) if isinstance(value, str) else value  # noqa: E731
    assert run(flags | {name: fill(value) for name, value in changes.items()}) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert errors[-1].startswith("sample_guidance.py: error: ") and re.search(message, errors[-1]), errors
    assert "Traceback" not in "".join(errors)
    assert not flags["output"].parent.exists() or entries(flags["output"].parent) == []


def test_another_recipe_is_taken_only_as_the_user_says(flags, run, save_model, capsys):
    model = save_model(music_recipe="demo35", pose_recipe="demo134")
    own = {"model_path": model, "guidance_types": "pose", "pose_estimator": f"{MARKER}:find_markers"}
    assert run(flags | own) == 0
    assert "note: the model was trained with poses of demo134, those of" in capsys.readouterr().out


def test_music_is_left_out_where_the_video_has_no_sound(flags, run, wrong_inputs):
    assert run(flags | {"driving_video": wrong_inputs["root"] / "mute.mp4", "guidance_types": "pose"}) == 0
    assert not VideoReader(flags["output"]).has_audio
