"""The tiny data folder as shards."""

from pathlib import Path

import pytest

import pack_guidance

TYPES = ["--guidance_types", "music", "pose", "--guidance_input_channels", "35", "134"]


@pytest.fixture(scope="session")
def pack():
    """The function that packs a data folder of the tiny kind: pack(root, output_dir, *more flags)."""

    def pack(root, output_dir, *more) -> Path:
        flags = ["--data_dir", root, "--output_dir", output_dir, *TYPES, "--num_workers", 0, *more]
        assert pack_guidance.main(list(map(str, flags))) == 0
        return Path(output_dir)

    return pack


@pytest.fixture(scope="session")
def tiny_shards(tiny_data, tmp_path_factory, pack) -> Path:
    """One shard of the tiny data."""
    return pack(tiny_data, tmp_path_factory.mktemp("tiny_shards") / "shards")
