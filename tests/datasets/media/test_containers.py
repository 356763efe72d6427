"""Files whose metadata is no text open all the same."""

from datasets import VideoReader
from datasets.media.containers import open_container


def test_garbled_metadata_is_no_reason_to_refuse_a_video(tmp_path, write_numbered):
    path = write_numbered(tmp_path / "a.mp4", 3)
    content = path.read_bytes()
    assert content.count(b"Lavf") == 1  # the name of the program that wrote the file
    path.write_bytes(content.replace(b"Lavf", b"\xff\xfe\x80\xff"))
    with open_container(path) as container:
        assert "Lavf" not in container.metadata["encoder"]
    assert len(VideoReader(path)) == 3
