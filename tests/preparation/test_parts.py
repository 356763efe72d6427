"""A video's part is told by its name alone; manifests say why something is missing after all parts."""

import pytest

from preparation.parts import MANIFEST_FOLDER, Part, missing_lines, part_number, write_manifest
from system.errors import ConfigError, DataError

NAMES = [f"dance_{number}" for number in range(200)]


def test_every_video_is_in_one_part_whatever_others_there_are():
    parts = [Part(number, 7) for number in range(1, 8)]
    held = [[name for name in NAMES if part.holds(name)] for part in parts]
    assert sorted(sum(held, [])) == sorted(NAMES)
    assert all(15 <= len(names) <= 45 for names in held)
    assert [part_number(name, 16) for name in ("dance_001", "춤", "a b")] == [4, 12, 3]  # on every machine


def test_part_in_words():
    assert Part.parse("3/16") == Part(3, 16) and str(Part(3, 16)) == "3/16"
    for wrong in ("0/4", "5/4", "1", "1/0", "-1/4", "a/b", "1/4/2"):
        with pytest.raises(ConfigError, match=f"--shard {wrong}: expected I/N"):
            Part.parse(wrong)


def test_what_is_missing_is_told_part_by_part(tmp_path):
    assert missing_lines(tmp_path, []) == []
    (line,) = missing_lines(tmp_path, ["b", "a"])
    assert line == "2 videos are not prepared (a, b): run the command without --merge"

    by_part = {part: [name for name in NAMES if Part(part, 4).holds(name)] for part in (1, 2, 3, 4)}
    fault = DataError(tmp_path / f"{by_part[1][0]}.mp4", "is not a video", "replace it")
    write_manifest(tmp_path, Part(1, 4), 50, [fault])
    write_manifest(tmp_path, Part(2, 4), 50)  # began
    write_manifest(tmp_path, Part(3, 4), 50, [])
    (tmp_path / MANIFEST_FOLDER / "9_of_9.json").write_text("{")  # not whole
    missing = [by_part[1][0], by_part[2][0], by_part[4][0], by_part[4][1]]
    lines = missing_lines(tmp_path, missing)
    assert lines[0] == f"part 1/4: {fault}"
    assert lines[1].startswith("part 2/4 began on ") and lines[1].endswith("run it with --shard 2/4")
    assert lines[2] == "part 4/4 has not begun (2 of its videos are missing): run it with --shard 4/4"
    assert len(lines) == 3
    (line,) = missing_lines(tmp_path, [by_part[3][0]])  # it came later
    assert line == f"part 3/4 left out {by_part[3][0]}: run it with --shard 3/4"
