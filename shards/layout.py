"""Names: of the files in a folder of shards, and of a sample's files in a shard.

A shard is a tar file in WebDataset's layout: the files of a sample lie one after another, and their names
have the sample's key up to the first dot. The index has the names that they have in a data folder.
"""

import os
from pathlib import PurePosixPath

from datasets.data_folder import METADATA_FOLDER, REFERENCE_FOLDER, VIDEO_FOLDER
from datasets.guidance.track import META_NAME
from datasets.guidance.tracks import TYPE_FOLDERS

INDEX_NAME = "index.sqlite"
TYPES_OF_FOLDERS = {folder: name for name, folder in TYPE_FOLDERS.items()}
ESCAPES = {"%": "%25", "/": "%2F", ".": "%2E"}  # of a sample's name in its key


def shard_name(number: int) -> str:
    return f"{number:06d}.tar"


def key_of(sample_id: str) -> str:
    """Return a sample's name without a dot."""
    return "".join(ESCAPES.get(letter, letter) for letter in sample_id)


def id_of(key: str) -> str:
    for letter, escape in reversed(ESCAPES.items()):
        key = key.replace(escape, letter)
    return key


def member_name(sample_id: str, path: str) -> str:
    """Return the name in a shard of a sample's file, of its path in the data folder.

    KEY.mp4, KEY.jpg (reference image), KEY.json (metadata), KEY.pose.npy, KEY.music.frame_000.npy, and
    KEY.music.type.json: the meta.json of all tracks of a type, which every sample has with it. A file of a
    latent cache, which has no folders: KEY.latents.safetensors.
    """
    if "/" not in path:
        return f"{key_of(sample_id)}.latents{os.path.splitext(path)[1]}"
    folder, *between, name = PurePosixPath(path).parts
    suffix, key = os.path.splitext(name)[1], key_of(sample_id)
    type_name = TYPES_OF_FOLDERS.get(folder, folder)
    if folder in (VIDEO_FOLDER, REFERENCE_FOLDER, METADATA_FOLDER):
        return key + suffix
    if between:
        return f"{key}.{type_name}.{name}"
    return f"{key}.{type_name}.type.json" if name == META_NAME else f"{key}.{type_name}{suffix}"
