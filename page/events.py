"""What happens when the page is used: files chosen, a job run and stopped, the tab closed."""

import shutil
from pathlib import Path

import gradio as gr

from system.errors import UserError

from .layout import Parts, add_parts
from .request import Chosen, Request
from .uploads import check_upload, hide_folders
from .words import language_of, say
from .work import Outcome, Work, line_html

MOST_WAITING = 20
BRIEF_INTERVAL = (1, 8)  # noise levels: RESULTS.md, fast settings
AT_ONCE = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}  # beside a job, too
CHOSEN = {"kind": "video", "image": None, "video": None, "song": None}  # numbers of examples; None: an upload


def build_page(parts: Parts, work: Work) -> gr.Blocks:
    """Return the page, which runs its jobs by `work`."""
    with gr.Blocks(title="Dance video", analytics_enabled=False, delete_cache=(3600, 86_400)) as blocks:
        add_parts(parts)
        events = Events(parts, work)
        events.chosen = chosen = gr.State(CHOSEN)
        for kind, component in parts.inputs.items():
            on_file = {"inputs": [component, chosen], "outputs": [component, chosen, parts.line], **AT_ONCE}
            component.upload(events.uploaded(kind), **on_file)
            component.clear(events.cleared(kind), chosen, chosen, **AT_ONCE)
        for kind, tab in parts.tabs.items():
            tab.select(lambda state, kind=kind: state | {"kind": kind}, chosen, chosen, **AT_ONCE)
        for kind, gallery in parts.galleries.items():
            filled = [parts.inputs["image"], parts.inputs[kind], chosen, parts.line]
            gallery.select(events.example_of(kind), chosen, filled, **AT_ONCE)
        buttons = [parts.make, parts.stop]
        results = [parts.line, parts.video, parts.panel_column, parts.panel, parts.download]
        ways = (parts.seconds, parts.start, parts.fits_body, parts.is_smooth, parts.is_heard, parts.two_grids,
                parts.is_guided_briefly)  # fmt: skip
        files, settings = parts.inputs.values(), (*parts.settings.values(), *parts.weights.values())
        wanted = {chosen, *files, *ways, *settings}
        job = parts.make.click(events.started, None, [*buttons, *results], **AT_ONCE).then(
            events.make, wanted, results, show_progress_on=[parts.video], api_visibility="private"
        )
        job.then(events.ended, None, buttons, **AT_ONCE)
        parts.stop.click(events.stopped, None, [*buttons, parts.line], cancels=[job], **AT_ONCE)
        blocks.unload(events.left)
    blocks.queue(max_size=MOST_WAITING, default_concurrency_limit=1, api_open=False)
    return blocks


class Events:
    """The handlers. A visit is known by Gradio's session."""

    def __init__(self, parts: Parts, work: Work) -> None:
        self.parts, self.work, self.visits = parts, work, work.visits

    # ---- Choosing ----

    def uploaded(self, kind: str):
        """Return the handler of an upload: it is told at once what is wrong with a file."""

        def check(path: str | None, chosen: dict, request: gr.Request):
            chosen = chosen | {kind: None}
            if path is None:
                return None, chosen, gr.skip()
            self.visits.keep(request.session_hash, Path(path))
            try:
                check_upload(Path(path), kind, self.parts.max_bytes)
            except UserError as error:
                line = Outcome(hide_folders(str(error), self.visits.root), is_error=True)
                return None, chosen, gr.HTML(line_html(line), visible=True)
            return gr.skip(), chosen, gr.HTML(visible=False)

        return check

    def cleared(self, kind: str):
        return lambda chosen: chosen | {kind: None}

    def example_of(self, kind: str):
        """Return the handler of a ready example: its image, and another's dance."""

        def choose(chosen: dict, request: gr.Request, event: gr.SelectData):
            image, dance = event.index, (event.index + 1) % len(self.parts.examples)
            folder = self.visits.folder(request.session_hash)
            sources = self.parts.examples[image].image, self.parts.examples[dance].video
            copies = [shutil.copy(source, folder) for source in sources]
            return *copies, chosen | {"image": image, kind: dance}, gr.HTML(visible=False)

        return choose

    # ---- Making ----

    def started(self):
        """Show that the work begins: the other button, and nothing of the job before."""
        return (
            gr.Button(interactive=False), gr.Button(visible=True), gr.HTML(visible=False), None,
            gr.Column(visible=False), None, gr.DownloadButton(visible=False),
        )  # fmt: skip

    def make(self, values: dict, request: gr.Request, progress=gr.Progress()):  # noqa: B008 (so Gradio finds it)
        """Run a job, and return what the page shows of it."""
        language = language_of(request.headers)
        try:
            wanted = self.request(values, language)
        except UserError as error:
            outcome = Outcome(hide_folders(str(error), self.visits.root), is_error=True)
        else:
            show = lambda words, done, total: progress((done, total) if total else 0, desc=words)  # noqa: E731
            outcome = self.work.run(wanted, request.session_hash, language, show)
        video, panel = outcome.video, outcome.panel
        return (
            gr.HTML(line_html(outcome), visible=True), video, gr.Column(visible=panel is not None), panel,
            gr.DownloadButton(value=video, visible=video is not None),
        )  # fmt: skip

    def request(self, values: dict, language: str) -> Request:
        """Return what is asked for. Raises UserError where a file is missing, or not of its kind."""
        parts, chosen = self.parts, values[self.chosen]
        kind = chosen["kind"]
        image, dance = (self.file(name, chosen[name], values, language) for name in ("image", kind))
        settings = {flag: values[component] for flag, component in parts.settings.items()}
        weights = {name: values[component] for name, component in parts.weights.items()}
        settings["guidance_scales"] = [f"{name}={weight}" for name, weight in weights.items() if weight]
        settings["window_grids"] = 2 if values[parts.two_grids] else 1
        settings["guidance_interval"] = BRIEF_INTERVAL if values[parts.is_guided_briefly] else None
        span = float(values[parts.start] or 0), float(values[parts.seconds])
        ways = (values[parts.fits_body], values[parts.is_smooth], values[parts.is_heard])
        return Request(image, kind, dance, *span, *ways, settings)

    def file(self, kind: str, number: int | None, values: dict, language: str) -> Chosen:
        """Return the upload of a kind, or the file of an example."""
        if number is not None:
            example = self.parts.examples[number]
            return Chosen(example.image if kind == "image" else example.video, example)
        upload = values[self.parts.inputs[kind]]
        if upload is None:
            raise UserError(say(language, f"no_{kind}"))
        check_upload(Path(upload), kind, self.parts.max_bytes)
        return Chosen(Path(upload))

    def ended(self):
        return gr.Button(interactive=True), gr.Button(visible=False)

    def stopped(self, request: gr.Request):
        """Stop the visit's job, and say so."""
        self.visits.stop(request.session_hash)
        line = line_html(Outcome(say(language_of(request.headers), "stopped")))
        return *self.ended(), gr.HTML(line, visible=True)

    def left(self, request: gr.Request) -> None:
        self.visits.leave(request.session_hash)
