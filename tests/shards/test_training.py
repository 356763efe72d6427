"""Training from shards: the bits that the folder gives."""

from tests.training.runs import assert_same_bits, final_weights, run, scalars


def test_a_run_from_shards_has_the_bits_of_one_from_the_folder(flags, tiny_shards, tmp_path, capsys):
    logs = tmp_path / "logs_2"
    others = ["--train_data_dir", tiny_shards, "--output_dir", tmp_path / "two", "--logging_dir", logs]
    assert run(flags) == 0
    assert run(flags, *others) == 0
    assert_same_bits(final_weights(tmp_path / "out"), final_weights(tmp_path / "two"))
    assert scalars(tmp_path / "logs", "train_loss") == scalars(logs, "train_loss")
    assert "3 samples in 1 shard" in capsys.readouterr().err
