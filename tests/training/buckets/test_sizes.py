"""The sizes of --aspect_buckets: those of auto, given ones, and what is refused."""

import pytest

from datasets.transforms import nearest_size
from system.errors import ConfigError
from training.buckets.sizes import bucket_sizes
from training.settings.parsing import parse_arguments

OF_512 = [(1024, 256), (768, 320), (640, 384), (576, 448), (512, 512)]


def test_auto_has_about_the_area_of_the_resolution():
    wide = [size[::-1] for size in reversed(OF_512[:-1])]
    assert list(bucket_sizes(["auto"], [512])) == OF_512 + wide
    for side in (64, 128, 256, 320, 768, 1024):
        sizes = bucket_sizes(["auto"], [side])
        assert (side, side) in sizes and len(sizes) >= 9
        assert all(0.75 * side**2 <= height * width <= side**2 for height, width in sizes)
        assert all(part % 8 == 0 for size in sizes for part in size)
    assert (640, 384) in bucket_sizes(["auto"], [640, 384])


def test_a_video_has_the_size_of_the_nearest_aspect_ratio():
    sizes = bucket_sizes(["auto"], [512])
    sources = [(1920, 1080), (1080, 1920), (700, 720), (480, 640)]
    nearest = [(640, 384), (384, 640), (512, 512), (448, 576)]
    assert [nearest_size(source, sizes) for source in sources] == nearest
    assert nearest_size((30, 20), [(60, 40), (120, 80)]) == (120, 80)


@pytest.mark.parametrize(
    "words, sizes",
    [
        ([], ()),
        (["--no-aspect_buckets"], ()),
        (["--aspect_buckets", "none"], ()),
        (["--aspect_buckets", "384x640", "640x384"], ((640, 384), (384, 640))),
        (["--aspect_ratio_buckets", "384,640;640,384"], ((640, 384), (384, 640))),
    ],
)
def test_flags(words, sizes):
    arguments = parse_arguments(words)
    assert bucket_sizes(arguments.aspect_buckets, arguments.resolution) == sizes


@pytest.mark.parametrize(
    "text, asked",
    [("true", ["auto"]), ("auto", ["auto"]), ("false", ["none"]), ("[64x32]", ["64x32"])],
)
def test_yaml(text, asked, tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(f"aspect_buckets: {text}\n")
    assert parse_arguments(["--config", str(path)]).aspect_buckets == asked


def test_without_a_value_it_is_auto():
    assert parse_arguments(["--aspect_buckets", "--resolution", "512"]).aspect_buckets == ["auto"]


@pytest.mark.parametrize("word", ["640x380", "640", "640x0", "automatic", "640*384", "auto 512x512"])
def test_what_is_no_size_is_refused(word):
    with pytest.raises(ConfigError, match="give auto, none, or sizes as HEIGHTxWIDTH, sides multiples of 8"):
        parse_arguments(["--aspect_buckets", *word.split()])
