"""The benchmark of starts runs, of a folder and of shards."""

import pack_guidance
from benchmarks import starting


def test_it_tells_the_parts_of_a_start(tiny_data, capsys):
    best = starting.main(["--data_dir", str(tiny_data), "--num_samples", "4"])
    said = capsys.readouterr().out
    assert "4 samples, 26 files each" in said and "a start's own memory" in said
    assert {"check", "dataset", "statistics", "all"} < best.keys()


def test_it_repeats_shards(tiny_data, tmp_path, capsys):
    flags = ["--data_dir", tiny_data, "--output_dir", tmp_path / "shards", "--num_workers", 0]
    channels = ["--guidance_input_channels", 35, 134]
    assert pack_guidance.main([*map(str, flags), *map(str, channels)]) == 0
    best = starting.main(["--data_dir", str(tmp_path / "shards"), "--num_samples", "7"])
    assert "7 samples, 3 shards" in capsys.readouterr().out
    assert {"index", "order", "first clip", "all"} < best.keys()
