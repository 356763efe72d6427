"""Folders of a data folder: missing, empty, nearly named."""

import shutil

from .planting import ANOTHER, with_maps


def nearly_named(root):
    (root / "poses").rename(root / "pose")
    yield "if that is meant, rename it to poses/"
    (root / "pose").rename(root / "poses")


def a_file_for_a_folder(root):
    kept = (root / "poses").rename(root / "aside")
    (root / "poses").touch()
    yield "move the file away and make it, or take pose out of --guidance_types"
    (root / "poses").unlink()
    kept.rename(root / "poses")


def no_folder(root):
    yield (
        "make it, or take depth out of --guidance_types",
        {"guidance_types": ["music", "pose", "depth"], "guidance_input_channels": [5, 134, 1]},
    )


def no_folder_of_the_only_type(root):
    types = {"guidance_types": ["depth"], "guidance_input_channels": [1]}
    yield "make it", types
    with_maps(root, (32, 32))
    yield ANOTHER | types


def an_empty_folder(root):
    kept = (root / "music_features").rename(root / "aside")
    (root / "music_features").mkdir()
    yield "put a folder of music files for each video there"
    shutil.copytree(kept, root / "music_features", dirs_exist_ok=True)


def no_images(root):
    kept = (root / "reference_images").rename(root / "aside")
    (root / "reference_images").mkdir()
    yield "put files there (.jpg .jpeg .png .webp)"
    shutil.copytree(kept, root / "reference_images", dirs_exist_ok=True)
