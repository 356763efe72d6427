"""What a video says of itself, read back as a player or a checker of origins reads it."""

from fractions import Fraction
from xml.etree import ElementTree

import av
import numpy as np
import pytest

from datasets import VideoReader, write_video
from datasets.media.tags import GENERATED, generated_tags
from preparation.video_encoding import VideoEncoder

FRAMES = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(48, 2).repeat(3, 3) * 80
TAGS = generated_tags("our software") | {"title": "춤 1"}


def write_at_once(path, tags):
    write_video(path, FRAMES, 12, tags=tags)


def write_frame_by_frame(path, tags):
    with VideoEncoder(path, (32, 48), rate=12, time_base=Fraction(1, 12), tags=tags) as encoder:
        for number, frame in enumerate(FRAMES):
            encoder.write(frame, number / 12)


@pytest.mark.parametrize("write", [write_at_once, write_frame_by_frame])
def test_a_generated_video_says_so(write, tmp_path):
    write(tmp_path / "tagged.mp4", TAGS)
    write(tmp_path / "plain.mp4", None)
    with av.open(str(tmp_path / "tagged.mp4"), options={"export_xmp": "1"}) as container:
        found = dict(container.metadata)
    assert found["title"] == TAGS["title"] and found["comment"] == TAGS["comment"]
    packet = ElementTree.fromstring(found["xmp"].encode())
    assert [element.text.strip() for element in packet.iter() if "DigitalSourceType" in element.tag] == [
        GENERATED
    ]

    tagged, plain = (VideoReader(tmp_path / name) for name in ("tagged.mp4", "plain.mp4"))
    assert np.array_equal(tagged.read([0, 1, 2]), plain.read([0, 1, 2]))
    with av.open(str(tmp_path / "plain.mp4"), options={"export_xmp": "1"}) as container:
        assert not {"title", "comment", "xmp"} & container.metadata.keys()


def test_the_boxes_of_the_file_end_where_it_ends(tmp_path):
    write_at_once(tmp_path / "tagged.mp4", TAGS)
    content, place, names = (tmp_path / "tagged.mp4").read_bytes(), 0, []
    while place < len(content):
        names.append(content[place + 4 : place + 8])
        place += int.from_bytes(content[place : place + 4], "big")
    assert place == len(content) and names[0] == b"ftyp" and names[-2:] == [b"mdat", b"uuid"]
