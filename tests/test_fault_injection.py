"""A run that is killed again and again, inside its saves too, ends with the bits of one that was left alone.

The same for each stage, two processes and more kills: python -m benchmarks.fault_injection.
"""

import sys

import pytest

from benchmarks.fault_injection import SIZES, flag_words, kill_and_resume


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL and no forks")
def test_killed_ten_times_a_run_ends_with_the_same_bits(tiny_base, tiny_data, tmp_path):
    settings = {
        **SIZES, "pretrained_model_name_or_path": tiny_base, "train_data_dir": tiny_data,
        "sequence_length": 2, "max_train_steps": 3, "checkpointing_steps": 1, "use_ema": True,
        "gradient_accumulation_steps": 2,
    }  # fmt: skip
    result = kill_and_resume(flag_words(settings), tmp_path, num_kills=10, seed=0)
    assert result.same_bits
    assert result.tried == 10 and result.inside_save >= 3, result
