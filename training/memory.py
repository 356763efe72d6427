"""Out of memory, told as one message: what was asked for, and which memory flags are not in use yet."""

import re
from contextlib import contextmanager

import torch

from system.errors import RunError
from training.settings.fields import TrainingArguments

# Only CUDA has an exception of its own; these are PyTorch's words on a CPU (Linux, Windows) and on MPS.
MARKS = ("can't allocate memory", "not enough memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in MARKS)


@contextmanager
def out_of_memory_explained(arguments: TrainingArguments):
    """Turn running out of memory in the block into a RunError that says what still helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        words = re.sub(r"^\[enforce fail.*?(?=Default)", "", " ".join(str(error).split()))
        found = ". ".join(words.split(". ")[:2]).rstrip(".")  # how much was asked for, and of which device
        advice = memory_advice(arguments, has_gpu=torch.cuda.is_available())
        raise RunError(f"out of memory: {found or 'the system has no more'}. {advice}") from None


def memory_advice(arguments: TrainingArguments, *, has_gpu: bool) -> str:
    """Return which settings still save memory, the most harmless first."""
    frames_matter = arguments.training_stage != "image" and arguments.train_data_format != "image"
    size = " ".join(str(side) for side in arguments.resolution)
    helps = {
        "--gradient_checkpointing all": arguments.gradient_checkpointing != "all",
        "--mixed_precision bf16": arguments.mixed_precision == "no",
        f"--train_batch_size 1 --gradient_accumulation_steps "
        f"{arguments.train_batch_size * arguments.gradient_accumulation_steps} (the same step)": (
            arguments.train_batch_size > 1
        ),
        "--set_grads_to_none": not arguments.set_grads_to_none,
        "--cache_latents --cache_features": (
            has_gpu and arguments.training_stage == "motion" and not arguments.cache_features
        ),
        "--use_8bit_adam": has_gpu and not arguments.use_8bit_adam,
        "no --use_ema": arguments.use_ema,
        f"a smaller --sequence_length than {arguments.sequence_length}": (
            frames_matter and arguments.sequence_length > 1
        ),
        "--training_stage image, then motion": arguments.training_stage == "joint",
        f"a smaller --resolution than {size}": True,
    }
    return f"What still helps: {'; '.join(flag for flag, does in helps.items() if does)}"
