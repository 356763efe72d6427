"""What a visitor asks for is a command line that sample_guidance.py takes."""

from dataclasses import replace
from pathlib import Path

import pytest

from page.examples import Example, find_examples
from page.request import Chosen, Request, Served, flags_of
from sample_guidance import parse_arguments

TRACKS = {"pose": Path("poses/a"), "music": Path("music/a.npy")}
EXAMPLE = Example("a", Path("a.png"), Path("a.mp4"), TRACKS, seconds=3.0, size=(90, 60))
SETTINGS = {"num_inference_steps": 5, "seed": None, "shared_noise": False, "guidance_scales": ["pose=1.5"]}
SERVED = Served(
    Path("final"), Path("dancer"), ("pose", "music"), frame_rate=24.0, frame_stride=2,
    flags={"device": "cpu", "mixed_precision": "no"},
    estimator={"pose_estimator": "dwpose", "dwpose_dir": None},
)  # fmt: skip
PICTURE, UPLOAD = Chosen(Path("me.jpg")), Chosen(Path("dance.mp4"))


def parsed(request: Request, served: Served = SERVED):
    return parse_arguments(flags_of(request, served, Path("out.mp4")))


def test_zero_is_a_value_and_nothing_is_none():
    settings = {"seed": 0, "guidance_scale": 0.0, "fit": "", "shared_noise": False, "guidance_scales": []}
    arguments = parsed(Request(PICTURE, "video", UPLOAD, settings=settings))
    assert (arguments.seed, arguments.guidance_scale, arguments.fit) == (0, 0.0, None)
    assert not arguments.shared_noise and arguments.guidance_scales == []


def test_an_uploaded_video():
    arguments = parsed(Request(PICTURE, "video", UPLOAD, 1.5, 4.0, True, True, True, SETTINGS))
    assert (arguments.driving_video, arguments.start_seconds, arguments.num_seconds) == (
        "dance.mp4",
        1.5,
        4.0,
    )
    assert (arguments.retarget, arguments.smooth_poses, arguments.guidance_types) == ("auto", True, None)
    assert (arguments.num_inference_steps, arguments.seed, arguments.panel) == (5, 42, True)
    assert arguments.guidance_scales == [("pose", 1.5)] and arguments.pose_estimator == "dwpose"


def test_a_video_that_is_not_heard_and_not_fitted():
    request = Request(PICTURE, "video", UPLOAD, fits_body=False, is_heard=False)
    arguments = parsed(request)
    assert (arguments.retarget, arguments.guidance_types) == ("none", ["pose"])
    assert parsed(request, replace(SERVED, guidance_types=("pose",))).guidance_types is None


@pytest.mark.parametrize("image", [PICTURE, Chosen(Path("a.png"), EXAMPLE)])
@pytest.mark.parametrize("fits_body", [True, False])
def test_an_examples_dance(image, fits_body):
    dance = Chosen(EXAMPLE.video, EXAMPLE)
    arguments = parsed(Request(image, "video", dance, 2.5, 60.0, fits_body))
    assert (arguments.poses, arguments.music, arguments.audio) == ("poses/a", "music/a.npy", "a.mp4")
    assert (arguments.start_frame, arguments.num_frames) == (48, 12)  # a second of it at least
    assert arguments.pose_size == [60, 90]
    assert arguments.reference_pose == ("poses/a" if image.example and fits_body else None)


@pytest.mark.parametrize("image", [PICTURE, Chosen(Path("a.png"), EXAMPLE)])
@pytest.mark.parametrize("dance", [Chosen(Path("song.mp3")), Chosen(EXAMPLE.video, EXAMPLE)])
def test_a_song(image, dance):
    arguments = parsed(Request(image, "song", dance, 0.0, 2.0, is_smooth=True))
    assert arguments.music_to_pose_path == "dancer" and arguments.poses is None
    assert arguments.reference_pose == ("poses/a" if image.example else None)
    assert (arguments.song, arguments.music) == (
        (None, "music/a.npy") if dance.example else ("song.mp3", None)
    )


def test_a_model_of_music_alone():
    served = replace(SERVED, music_to_pose_path=None, guidance_types=("music",))
    assert served.takes_songs
    arguments = parsed(Request(PICTURE, "song", Chosen(Path("song.mp3"))), served)
    assert (arguments.song, arguments.music_to_pose_path, arguments.reference_pose) == (
        "song.mp3",
        None,
        None,
    )
    assert not replace(served, guidance_types=("pose", "music")).takes_songs
    parsed(Request(PICTURE, "video", UPLOAD, fits_body=False), served)


def test_examples_are_whole_samples(tiny_data):
    examples = find_examples(tiny_data, ("pose", "music"))
    assert examples and all(set(one.tracks) == {"pose", "music"} for one in examples)
    first = examples[0]
    assert first.image.is_file() and first.video.is_file() and first.seconds > 0
    assert find_examples(tiny_data, ("pose",))[0].tracks.keys() == {"pose"}
