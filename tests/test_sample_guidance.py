"""The sampling script, run in process: videos that play, and one line for every wrong input."""

import inspect
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import sample_guidance
import sample_music_to_pose
import sampling
from datasets import VideoReader, write_video
from demo.dancer import draw_lots, key_points, standing
from models import ChampModel, FrozenEncoders, create_guidance_encoders, register_guidance_encoder
from models.guidance_encoder import ImageGuidanceEncoder
from models.lora import LORA_FILE
from pipelines.champ_pipeline import ChampPipeline
from pipelines.flags import lora_scales, sampling_keywords
from preparation.song import first_frame_seconds
from training.objective import make_noise_scheduler

from .pipelines.tiny_pipeline import write_adapter

SIZE, FRAME_RATE, SOUND_RATE = 64, 8, 44_100


def save_final(base, path, *, types=("music", "pose"), channels=(35, 134), motion_modules=True, seed=0,
               **settings):  # fmt: skip
    """A model of random weights in the folder that training would write."""
    torch.manual_seed(seed)
    encoders = create_guidance_encoders(list(types), list(channels), 32, block_out_channels=(8, 8, 8, 32))
    model = ChampModel.from_pretrained_sd(base, encoders, motion_modules=motion_modules)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    settings = {
        "height": SIZE,
        "width": SIZE,
        "sequence_length": 8,
        "frame_rate": float(FRAME_RATE),
    } | settings
    pipeline = ChampPipeline.from_parts(
        model, FrozenEncoders.from_pretrained(base), make_noise_scheduler(), **settings
    )
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def final(tiny_base, tmp_path_factory):
    return save_final(tiny_base, tmp_path_factory.mktemp("run") / "final")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A second and a half of sound: silence, and a tone from 0.75 s on."""
    path = tmp_path_factory.mktemp("sound") / "tone.wav"
    seconds = np.arange(round(1.5 * SOUND_RATE)) / SOUND_RATE
    tone = np.where(seconds >= 0.75, 0.5 * np.sin(2 * np.pi * 440 * seconds), 0)
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=SOUND_RATE, layout="mono")
        samples = (32767 * tone).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = SOUND_RATE
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


@pytest.fixture
def flags(final, tiny_data, tmp_path):
    """The flags that every run here needs, as a dict; None: without a value, False: left out."""
    return {
        "model_path": final,
        "reference_image": tiny_data / "reference_images" / "dance_001.png",
        "poses": tiny_data / "poses" / "dance_001",
        "output": tmp_path / "new" / "folder" / "clip.mp4",
        "num_inference_steps": 1,
        "device": "cpu",
    }


def run(flags: dict) -> int:
    argv = []
    for name, value in flags.items():
        if value is not False:
            argv += [
                f"--{name}",
                *([] if value is None else map(str, value) if isinstance(value, list) else [str(value)]),
            ]
    return sample_guidance.main(argv)


def read_video(path) -> np.ndarray:
    reader = VideoReader(path)
    return reader.read(range(len(reader)))


def test_picture_poses_music_and_sound_to_a_video(flags, tiny_data, sound, capsys):
    flags |= {
        "music": tiny_data / "music_features" / "dance_001", "audio": sound,
        "start_frame": 2, "num_frames": 8, "panel": None,
    }  # fmt: skip
    assert run(flags) == 0
    reader = VideoReader(flags["output"])
    assert len(reader) == 8 and reader.size == (SIZE, SIZE) and reader.has_audio
    assert reader.frame_rate == pytest.approx(FRAME_RATE)
    with av.open(str(flags["output"])) as container:
        blocks = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
        tone = np.abs(np.concatenate(blocks)) > 0.1
    assert abs(np.argmax(tone) / SOUND_RATE - 0.5) < 0.03  # 0.75 s of the sound, less 2 frames
    panel = VideoReader(flags["output"].with_name("clip_panel.mp4"))
    assert len(panel) == 8 and panel.has_audio and panel.size[1] > 4 * SIZE
    assert "wrote" in capsys.readouterr().out


def test_sound_of_a_video_that_starts_late_begins_with_its_first_frame(tmp_path, sound):
    with av.open(str(tmp_path / "late.mp4"), "w") as output:
        stream = output.add_stream("libx264", rate=8, options={"bf": "2"})
        stream.width = stream.height = 64
        for number in range(8):
            frame = av.VideoFrame(64, 64, "yuv420p")
            frame.pts = number + 4
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    assert first_frame_seconds(str(tmp_path / "late.mp4")) == 0.5
    assert first_frame_seconds(str(sound)) == 0


def test_the_seed_decides(flags, tmp_path):
    outputs = []
    for seed in (1, 1, 2):
        output = tmp_path / f"{len(outputs)}.mp4"
        assert run(flags | {"seed": seed, "num_frames": 2, "output": output}) == 0
        outputs.append(read_video(output))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (outputs[0] != outputs[2]).any()


def test_music_alone_from_one_file_of_another_rate_and_a_long_video(flags, tmp_path):
    np.save(tmp_path / "song.npy", np.random.default_rng(0).normal(size=(100, 35)))
    flags |= {
        "poses": False, "music": tmp_path / "song.npy", "music_feature_fps": 20, "guidance_scale": 1,
        "resolution": [64, 32], "mixed_precision": "bf16",
    }  # fmt: skip
    assert run(flags) == 0
    reader = VideoReader(flags["output"])
    assert len(reader) == 40 and reader.size == (64, 32)  # 5 s at 8 a second, in windows of 8


def test_a_dance_to_music(flags, tiny_dancer, standing_file, tmp_path):
    """The same seed gives the same dance, whether its poses are given or made on the way."""
    np.save(tmp_path / "song.npy", np.random.default_rng(0).normal(size=(12, 35)))
    dance = {
        "music_to_pose_path": tiny_dancer,
        "reference_pose": standing_file,
        "music": tmp_path / "song.npy",
    }
    assert run(flags | dance | {"poses": False}) == 0
    assert len(VideoReader(flags["output"])) == 12
    assert [path.name for path in flags["output"].parent.iterdir()] == ["clip.mp4"]
    argv = ["--model_path", tiny_dancer, "--music", dance["music"], "--reference_pose", standing_file]
    assert sample_music_to_pose.main([*map(str, argv), "--output_dir", str(tmp_path / "dance")]) == 0
    again = {"poses": tmp_path / "dance", "music": dance["music"], "output": tmp_path / "again.mp4"}
    assert run(flags | again) == 0
    difference = read_video(tmp_path / "again.mp4").astype(int) - read_video(flags["output"])
    assert np.abs(difference).mean() < 1  # poses in files are rounded


def test_a_dance_to_a_song_of_a_model_without_music(
    flags, tiny_base, tiny_dancer, tmp_path, sound, monkeypatch
):
    heard = lambda *_, num_features, **__: np.zeros((10, num_features), np.float32)  # noqa: E731
    monkeypatch.setattr("sampling.dancing.song_features", heard)
    pose = lambda image, path: key_points(dancer := draw_lots(np.random.default_rng(1)), standing(dancer))  # noqa: E731
    monkeypatch.setattr("sampling.dancing.pose_of_image", pose)
    final = save_final(tiny_base, tmp_path / "final", types=["pose"], channels=[134])
    flags |= {"model_path": final, "poses": False, "music_to_pose_path": tiny_dancer, "song": sound}
    assert run(flags) == 0
    reader = VideoReader(flags["output"])
    assert len(reader) == 10 and reader.has_audio


def test_a_song_as_music(flags, sound, monkeypatch):
    asked = {}

    def features(path, frame_rate, *, recipe, num_features, **_):
        asked.update(frame_rate=frame_rate, recipe=recipe)
        return np.zeros((12, num_features), np.float32)

    monkeypatch.setattr("sampling.making.song_features", features)
    assert run(flags | {"song": sound}) == 0
    assert asked == {"frame_rate": FRAME_RATE, "recipe": None}
    assert VideoReader(flags["output"]).has_audio


def test_stride_and_rate_set_the_speed(flags):
    assert run(flags | {"frame_rate": 30, "frame_stride": 3}) == 0
    reader = VideoReader(flags["output"])
    assert len(reader) == 4 and reader.frame_rate == pytest.approx(10)


def test_a_model_of_the_image_stage_samples_frame_by_frame(flags, tiny_base, tmp_path):
    final = save_final(tiny_base, tmp_path / "final", motion_modules=False, sequence_length=1)
    assert run(flags | {"model_path": final, "num_frames": 3}) == 0
    assert len(VideoReader(flags["output"])) == 3


def test_every_flag_is_used():
    texts = [path.read_text(encoding="utf-8") for path in Path(sampling.__file__).parent.glob("*.py")]
    source = "".join([*map(inspect.getsource, (sample_guidance, sampling_keywords, lora_scales)), *texts])
    flags = [action.dest for action in sample_guidance.build_parser()._actions if action.dest != "help"]
    assert [flag for flag in flags if not re.search(rf"(arguments|flags)\.{flag}\b", source)] == []


def test_a_type_of_your_own(flags, tiny_base, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "models.guidance_encoder._REGISTRY", {}
    )  # what the modules register ends with this test

    @register_guidance_encoder("sketch")
    class SketchEncoder(ImageGuidanceEncoder):
        pass

    final = save_final(tiny_base, tmp_path / "final", types=["sketch"], channels=[1])
    (tmp_path / "sketch").mkdir()
    for frame in range(2):
        np.save(tmp_path / "sketch" / f"{frame}.npy", np.random.default_rng(frame).random((1, SIZE, SIZE)))
    module = tmp_path / "my_sketches.py"
    module.write_text(
        "from models import ImageGuidanceEncoder, register_guidance_encoder\n\n\n"
        "@register_guidance_encoder('sketch')\nclass SketchEncoder(ImageGuidanceEncoder):\n    pass\n"
    )
    flags |= {"model_path": final, "poses": False, "guidance": f"sketch={tmp_path / 'sketch'}"}
    monkeypatch.setattr("models.guidance_encoder._REGISTRY", {})
    assert run(flags) == 2
    assert run(flags | {"guidance_modules": module}) == 0
    assert len(VideoReader(flags["output"])) == 2


def test_what_exists_is_replaced_only_when_asked(flags, capsys):
    flags |= {"num_frames": 1}
    assert run(flags) == 0
    before = flags["output"].read_bytes()
    assert run(flags) == 2
    assert "--overwrite" in capsys.readouterr().err and flags["output"].read_bytes() == before
    assert run(flags | {"overwrite": None, "seed": 7}) == 0
    assert flags["output"].read_bytes() != before


def test_adapters_change_a_video_as_far_as_they_are_scaled(flags, final, tmp_path):
    adapter = write_adapter(final, tmp_path / "dancer", "motion")
    outputs = []
    for lora in ({}, {"lora": [adapter, adapter], "lora_scale": 0}, {"lora": adapter / LORA_FILE}):
        output = tmp_path / f"{len(outputs)}.mp4"
        assert run(flags | lora | {"num_frames": 2, "output": output}) == 0
        outputs.append(read_video(output))
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert (outputs[0] != outputs[2]).any()


def write_wrong_adapters(root, final):
    """Files of adapters that are wrong in one way each."""
    file = write_adapter(final, root / "dancer", "motion") / LORA_FILE
    (root / "cut.safetensors").write_bytes(file.read_bytes()[:-100])
    with safe_open(file, "pt") as opened:
        weights, metadata = {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata()  # noqa: SIM118
    save_file(weights, root / "theirs.safetensors", {"format": "pt"})
    next(iter(weights.values()))[0, 0] = torch.nan
    save_file(weights, root / "broken.safetensors", metadata)


def write_wrong_inputs(root):
    """Files that are wrong in one way each."""
    (root / "text.jpg").write_text("no picture")
    (root / "music_3").mkdir()
    (root / "poses_2").mkdir()
    for frame in range(12):
        np.save(root / "music_3" / f"{frame}.npy", np.zeros(3))
        keypoints = {"keypoints": [[0.5, 0.5, 1], [0.4, 0.4, 1]]}
        (root / "poses_2" / f"{frame}.json").write_text(json.dumps(keypoints))
    np.save(root / "short.npy", np.zeros((5, 35)))
    write_video(root / "silent.mp4", np.zeros((4, 16, 16, 3), np.uint8), 8)
    (root / "run" / "final").mkdir(parents=True)
    (root / "run" / "final" / "model_index.json").write_text("{}")


WRONG_INPUTS = {
    "no model": ({"model_path": "{root}/none"}, "none is no folder: expected the final/ folder"),
    "the folder above the model": ({"model_path": "{root}/run"}, "did you mean {root}/run/final"),
    "an empty model": ({"model_path": "{root}/run/final"}, "unet/config.json is missing"),
    "no reference": ({"reference_image": "{root}/none.png"}, "none.png: no such image"),
    "a reference that is text": ({"reference_image": "{root}/text.jpg"}, "text.jpg: is not a readable image"),
    "no poses": ({"poses": "{root}/none"}, "none: no such pose folder"),
    "no guidance": ({"poses": False}, "no guidance: give --driving_video, --song, --poses, --music"),
    "too few key points": ({"poses": "{root}/poses_2"}, "2 key points, expected 134"),
    "too few features": ({"music": "{root}/music_3"}, r"shape \(3,\), expected \(35,\)"),
    "lengths that differ": ({"music": "{root}/short.npy"}, "music gives 5 frames, pose gives 12; --num_f"),
    "an untrained type": ({"guidance": "depth=x"}, "type depth, this model was trained with music, pose"),
    "a type without a path": ({"guidance": "depth"}, "expected TYPE=PATH"),
    "a type twice": ({"guidance": "pose=x"}, "pose is given twice"),
    "no sound file": ({"audio": "{root}/none.mp3"}, "none.mp3: no such sound file"),
    "a silent sound file": ({"audio": "{root}/silent.mp4"}, "silent.mp4: has no sound"),
    "another format": ({"output": "{root}/clip.gif"}, r"ends in \.mp4"),
    "a folder that cannot be made": ({"output": "{root}/text.jpg/clip.mp4"}, "cannot be made"),
    "the sound as output": ({"audio": "{root}/silent.mp4", "output": "{root}/silent.mp4"}, "--audio too"),
    "a side that the VAE cannot halve": ({"resolution": "60"}, "multiples of 8"),
    "three sides": ({"resolution": [64, 64, 64]}, "a height and a width"),
    "too many frames": ({"num_frames": 13}, "12 rows of pose give 12 frames, 13 asked for"),
    "too long windows": ({"context_frames": 33}, "1 to 32 frames"),
    "an overlap too large": ({"context_overlap": 8}, "0 to 7"),
    "no frames": ({"num_frames": 0}, "--num_frames: must be at least 1, not 0"),
    "no number": ({"frame_rate": "fast"}, "--frame_rate: invalid float value: 'fast'"),
    "an unknown flag": ({"musik": "x"}, "unrecognized arguments: --musik"),
    "half precision on a CPU": ({"mixed_precision": "fp16"}, "fp16 needs a GPU"),
    "no such device": ({"device": "abacus"}, "--device abacus"),
    "xformers without a GPU": ({"enable_xformers_memory_efficient_attention": None}, "xformers"),
    "no such module": ({"guidance_modules": "no_such_module"}, "--guidance_modules no_such_module"),
    "a dance and poses": ({"music_to_pose_path": "x"}, "--music_to_pose_path: not allowed with .* --poses"),
    "a dance to nothing": ({"poses": False, "music_to_pose_path": "x"}, "give --music or --song to dance to"),
    "no dancer": (
        {"poses": False, "music_to_pose_path": "{root}/none", "music": "{root}/short.npy"},
        "--music_to_pose_path {root}/none is no folder",
    ),
    "a pose for no dance": ({"reference_pose": "x"}, "there is no --music_to_pose_path"),
    "no song": ({"song": "{root}/none.mp3"}, "none.mp3: no such sound file"),
    "a rate for no music": ({"music_feature_fps": 30}, "there is no --music"),
    "no picture": ({"reference_image": False}, "a video needs --reference_image; --help lists all flags"),
    "no adapter": ({"lora": "{root}/run"}, "LoRA {root}/run: no pytorch_lora_weights.safetensors: give the"),
    "an adapter as a model": ({"model_path": "{root}/dancer"}, "it holds adapters: give it as --lora, and"),
    "half an adapter": ({"lora": "{root}/cut.safetensors"}, "cut.safetensors: cannot be read: .*copy it"),
    "an adapter of others": (
        {"lora": "{root}/theirs.safetensors"},
        "theirs.safetensors: it has no .* that this trainer writes: give the final/ of a run with",
    ),
    "an adapter with NaN": ({"lora": "{root}/broken.safetensors"}, "1 of its weights hold NaN or infinity"),
    "an adapter for another model": (
        {"lora": "{root}/dancer", "model_path": "{root}/other"},
        "--model_path {root}/other: LoRA {root}/dancer/.*: was trained on another base: .* other weights",
    ),
    "a scale of nothing": ({"lora_scale": 0.5}, "--lora_scale: there is no --lora"),
    "a scale too many": ({"lora": "x", "lora_scale": [1, 2]}, "2 scales for 1 adapter; give one"),
    "no finite scale": ({"lora": "x", "lora_scale": "inf"}, "inf: expected a finite number"),
}  # fmt: skip


@pytest.fixture(scope="module")
def wrong_inputs(tmp_path_factory, tiny_base, final):
    root = tmp_path_factory.mktemp("wrong")
    write_wrong_inputs(root)
    write_wrong_adapters(root, final)
    save_final(tiny_base, root / "other", seed=1)
    return root


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_a_wrong_input_is_one_line(flags, wrong_inputs, case, capsys):
    changes, message = WRONG_INPUTS[case]
    changes = {
        name: value.replace("{root}", str(wrong_inputs)) if isinstance(value, str) else value
        for name, value in changes.items()
    }
    assert run(flags | changes) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("sample_guidance.py: error: ")
    assert re.search(message.replace("{root}", str(wrong_inputs)), error), error


def test_poses_need_no_size_but_the_reader_is_told(flags, capsys):
    assert run(flags | {"num_frames": 1}) == 0
    assert "--pose_size WIDTH HEIGHT" in capsys.readouterr().out
    assert run(flags | {"num_frames": 1, "pose_size": [64, 64], "overwrite": None}) == 0
    assert "note" not in capsys.readouterr().out
