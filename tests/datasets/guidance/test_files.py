"""Files of guidance that are no text or no array."""

import pytest

from datasets.guidance.files import load_json
from system.errors import DataError


@pytest.mark.parametrize(
    ("content", "problem", "fix"),
    [
        ('{"name": "안무"}'.encode("cp949"), r"is not text in UTF-8 \(byte 10 is 0xbe\)", "save it as UTF-8"),
        (b"", "is empty", "write it again"),
        (b'{"half', "is not valid JSON", "write it again"),
    ],
    ids=["cp949", "empty", "half"],
)
def test_json_that_cannot_be_read(tmp_path, content, problem, fix):
    path = tmp_path / "frame_000.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        load_json(path)
    assert caught.value.fix == fix


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_of_any_unicode_encoding(tmp_path, encoding):
    path = tmp_path / "meta.json"
    path.write_bytes('{"name": "안무"}'.encode(encoding))
    assert load_json(path) == {"name": "안무"}
