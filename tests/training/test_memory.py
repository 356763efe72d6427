"""Out of memory is one message that names the flags that still help, and no others."""

import pytest
import torch

from system.errors import RunError
from training.memory import memory_advice, out_of_memory_explained
from training.settings.fields import TrainingArguments


def test_a_real_lack_of_memory_is_one_message():
    with pytest.raises(RunError) as raised, out_of_memory_explained(TrainingArguments()):
        torch.empty(2**60, dtype=torch.uint8)  # the CPU allocator's own error
    message = str(raised.value)
    assert message.startswith(
        "out of memory: DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    )
    assert "What still helps: --gradient_checkpointing all; --mixed_precision bf16;" in message


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB. More."), MemoryError()]
)
def test_a_gpus_and_pythons_are_too(error):
    with (
        pytest.raises(RunError, match="out of memory: .*still helps"),
        out_of_memory_explained(TrainingArguments()),
    ):
        raise error


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="a bug"), out_of_memory_explained(TrainingArguments()):
        raise RuntimeError("a bug")


def test_what_is_in_use_is_not_advised():
    plain = memory_advice(TrainingArguments(train_batch_size=4, use_ema=True), has_gpu=True)
    for flag in ("--gradient_checkpointing all", "--mixed_precision", "--use_8bit_adam", "no --use_ema"):
        assert flag in plain
    assert "--train_batch_size 1 --gradient_accumulation_steps 4 (the same step)" in plain
    saving = TrainingArguments(
        gradient_checkpointing="all", mixed_precision="bf16", use_8bit_adam=True, training_stage="image"
    )
    advice = memory_advice(saving, has_gpu=True)
    assert advice == "What still helps: a smaller --resolution than 512"
