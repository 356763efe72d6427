"""The page as Gradio's components. What happens when they are used is in events.py."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
from gradio.i18n import I18nData

from pipelines.schedulers import SCHEDULERS

from .components import Audio, Image, Video
from .examples import Example
from .request import Served
from .words import PREFIX, translations

MOST_SECONDS, MOST_STEPS = 60, 100
USUAL_SECONDS, USUAL_STEPS = {True: 4, False: 2}, {True: 25, False: 12}  # on a GPU, and on a CPU in a minute
FIELD, BUTTON = 230, 120  # pixels at least: a phone has room for one field, or two buttons


def words(key: str) -> I18nData:
    """Return words of the page, in the language that the browser will choose."""
    return I18nData(PREFIX + key)


@dataclass
class Parts:
    """The components that events touch, and what they are filled with."""

    served: Served
    examples: Sequence[Example]
    max_bytes: int  # of an upload
    is_fast: bool  # there is a GPU
    inputs: dict = field(default_factory=dict)  # {"image", "video" or "song": component}
    tabs: dict = field(default_factory=dict)  # {"video" or "song": tab}
    galleries: dict = field(default_factory=dict)  # {"video" or "song": ready examples}
    settings: dict = field(default_factory=dict)  # {flag of sample_guidance.py: component}
    weights: dict = field(default_factory=dict)  # {guidance type: component}


def add_parts(parts: Parts) -> None:
    """Add all components to the page that is open; they are then attributes of `parts`."""
    gr.Markdown(words("intro"))
    with gr.Row():
        with gr.Column(min_width=320):
            _add_inputs(parts)
            _add_settings(parts)
        with gr.Column(min_width=320):
            _add_results(parts)


def _add_inputs(parts: Parts) -> None:
    gr.Markdown(words("picture"))
    parts.inputs["image"] = Image(
        show_label=False, sources=["upload", "clipboard"], height=240, buttons=[], type="filepath"
    )
    gr.Markdown(words("dance"))
    with gr.Tabs():
        with gr.Tab(words("video_tab"), id="video") as parts.tabs["video"]:
            parts.inputs["video"] = Video(
                show_label=False,
                sources=["upload"],
                height=220,
                buttons=[],
                elem_classes="driving",
                interactive="video" not in parts.served.refusals,
            )
            _add_examples(parts, "video")
        with gr.Tab(words("song_tab"), id="song", visible=parts.served.takes_songs) as parts.tabs["song"]:
            parts.inputs["song"] = Audio(
                label=words("song"),
                sources=["upload"],
                type="filepath",
                editable=False,
                buttons=[],
                interactive="song" not in parts.served.refusals,
            )
            _add_examples(parts, "song")


def _add_examples(parts: Parts, kind: str) -> None:
    if kind in parts.served.refusals:
        gr.Markdown(words(f"no_own_{kind}"), elem_classes="small")
    if parts.examples:
        gr.Markdown(words("examples"), elem_classes="small")
    parts.galleries[kind] = gr.Gallery(
        [str(example.image) for example in parts.examples], show_label=False, columns=6, height="auto",
        allow_preview=False, object_fit="cover", buttons=[], interactive=False, container=False,
        visible=bool(parts.examples), elem_classes="examples",
    )  # fmt: skip


def _add_settings(parts: Parts) -> None:
    settings = parts.settings
    with gr.Row():
        parts.seconds = gr.Slider(
            1, MOST_SECONDS, USUAL_SECONDS[parts.is_fast], step=1, label=words("seconds"),
            info=words("seconds_info"), min_width=FIELD,
        )  # fmt: skip
        settings["num_inference_steps"] = gr.Slider(
            1, MOST_STEPS, USUAL_STEPS[parts.is_fast], step=1, label=words("steps"),
            info=words("steps_info"), min_width=FIELD,
        )  # fmt: skip
    with gr.Row():
        settings["guidance_scale"] = gr.Slider(
            1, 8, 3.5, step=0.1, label=words("scale"), info=words("scale_info"), min_width=FIELD
        )
        settings["seed"] = gr.Number(
            42, precision=0, minimum=0, label=words("seed"), info=words("seed_info"), min_width=FIELD
        )
    with gr.Accordion(words("more"), open=False):
        _add_more_settings(parts, settings)


def _add_more_settings(parts: Parts, settings: dict) -> None:
    served = parts.served
    parts.start = gr.Number(0, minimum=0, label=words("start"))
    has_poses = "pose" in served.guidance_types
    parts.fits_body = gr.Checkbox(has_poses, label=words("retarget"), visible=has_poses)
    parts.is_smooth = gr.Checkbox(False, label=words("smooth"), visible=has_poses)
    can_choose = has_poses and served.hears_videos
    parts.is_heard = gr.Checkbox(served.hears_videos, label=words("hear"), visible=can_choose)
    settings["scheduler"] = gr.Dropdown(list(SCHEDULERS), value=SCHEDULERS[0], label=words("scheduler"))
    with gr.Row():
        for name in sorted(set(served.guidance_types) & {"pose", "music"}):
            parts.weights[name] = gr.Slider(
                0, 3, 0, step=0.1, label=words(f"weight_{name}"), min_width=FIELD, buttons=[]
            )
    parts.is_guided_briefly = gr.Checkbox(False, label=words("interval"))
    parts.two_grids = gr.Checkbox(False, label=words("grids"))
    settings["shared_noise"] = gr.Checkbox(False, label=words("noise"))
    fits = [(words(f"fit_{name or 'trained'}"), name) for name in ("", "crop", "pad")]
    settings["fit"] = gr.Radio(fits, value="", label=words("fit"))


def _add_results(parts: Parts) -> None:
    with gr.Row():
        parts.make = gr.Button(words("make"), variant="primary", min_width=BUTTON)
        parts.stop = gr.Button(words("stop"), variant="stop", visible=False, min_width=BUTTON)
    parts.line = gr.HTML(visible=False)
    parts.video = gr.Video(label=words("result"), interactive=False, height=380, buttons=[], loop=True)
    with gr.Column(visible=False, min_width=1) as parts.panel_column:
        gr.Markdown(words("panel"), elem_classes="small")
        parts.panel = gr.Video(show_label=False, interactive=False, buttons=[], loop=True)
    parts.download = gr.DownloadButton(words("download"), visible=False)
    gr.Markdown(words("limits"), elem_classes="small")


def look(parts: Parts) -> dict:
    """Return the page's words, styles and colours, as `launch` takes them."""
    values = {"megabytes": f"{parts.max_bytes / 2**20:.3g}"} | parts.served.refusals
    return {
        "i18n": gr.I18n(**translations(**values)),
        "css": (Path(__file__).parent / "page.css").read_text(encoding="utf-8"),
        "theme": gr.themes.Default(primary_hue="teal", neutral_hue="slate", radius_size="lg"),
    }
