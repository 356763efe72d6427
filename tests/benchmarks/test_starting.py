"""The benchmark of starts runs, and a later start reads nothing again."""

from benchmarks import starting


def test_a_start_is_measured(tiny_data, capsys):
    best = starting.main(["--data_dir", str(tiny_data), "--num_samples", "4"])
    assert best["all"] > 0 and "4 samples of" in capsys.readouterr().out
