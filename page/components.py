"""Gradio's components for uploads, which hand on the path of a file, unopened and unconverted."""

from abc import ABCMeta

import gradio as gr
from gradio_client.utils import is_http_url_like


class _Upload:
    """What an upload is not: opened by Gradio, or fetched from an address that a visitor names."""

    def preprocess(self, payload) -> str | None:
        return payload.path if payload else None

    async def async_move_resource_to_block_cache(self, url_or_file_path) -> str | None:
        if url_or_file_path is not None and is_http_url_like(str(url_or_file_path)):
            raise gr.Error("only uploaded files are taken")
        return await super().async_move_resource_to_block_cache(url_or_file_path)


def _of_uploads(component: type) -> type:
    """Return the kind of component for uploads, of the same name: its looks are found by it.

    Made past Gradio's own metaclass, which writes a .pyi file beside the source of every class.
    """
    names = {"__module__": __name__, "__doc__": component.__doc__}
    return ABCMeta.__new__(type(component), component.__name__, (_Upload, component), names)


Image, Video, Audio = map(_of_uploads, (gr.Image, gr.Video, gr.Audio))
