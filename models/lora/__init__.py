"""Low-rank adapters (LoRA, arXiv:2106.09685) on a ChampModel's projections, by peft.

`adapters.py` puts them on, scales and merges them; `files.py` saves and loads them, each with digests of the
weights that it was trained on (`base.py`). What peft does to names and classes of layers is known here alone.
"""

from .adapters import (
    LORA_PARTS,
    LoraSettings,
    add_lora,
    check_merged,
    check_parts,
    frozen_base_names,
    has_lora,
    is_adapter_name,
    lora_names,
    lora_state,
    merge_lora,
    set_lora_scales,
    trains_with_lora,
)
from .base import base_digest
from .files import ENCODERS_FOLDER, LORA_FILE, WrongBaseError, load_lora, load_loras, lora_file, save_lora

__all__ = [
    "ENCODERS_FOLDER",
    "LORA_FILE",
    "LORA_PARTS",
    "LoraSettings",
    "WrongBaseError",
    "add_lora",
    "base_digest",
    "check_merged",
    "check_parts",
    "frozen_base_names",
    "has_lora",
    "is_adapter_name",
    "load_lora",
    "load_loras",
    "lora_file",
    "lora_names",
    "lora_state",
    "merge_lora",
    "save_lora",
    "set_lora_scales",
    "trains_with_lora",
]
