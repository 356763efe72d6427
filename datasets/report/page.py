"""The data report as one HTML page to look at: faults first, then every sample with images over its time.

The page holds all that it shows: no network, no script. What comes from file names and files is escaped.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from pathlib import Path

import numpy as np

from datasets.checking.data_report import DataReport, Fault, printable
from datasets.checking.sample_check import CheckSettings
from datasets.data_folder import Sample, list_data_folder
from system.errors import DataError
from system.processes import map_in_processes

from .card import count, facts_list, look, metadata_notes, text, video_seconds
from .images import SampleImages, draw_sample, no_images

MAX_CLEAN_IMAGES = 60  # samples without a fault that are shown with images
MAX_IMAGES = 200  # samples shown with images in all
MAX_IMAGE_BYTES = 20_000_000  # a third more in the page, where they are text
MAX_LISTED = 3000  # samples without images; the JSON has all
STYLE_PATH = Path(__file__).with_name("page.css")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report_page(report: DataReport, path: str | Path, *, num_workers: int | None = None) -> None:
    """Write the page of a report. Reads the images from the report's data folder anew."""
    by_sample: dict[str, list[Fault]] = defaultdict(list)
    for fault in report.faults:
        by_sample[fault.sample_id].append(fault)
    order = sorted(report.samples, key=lambda sample_id: (_rank(by_sample.get(sample_id, ())), sample_id))
    images = _draw(report, _with_images(order, by_sample), num_workers)
    page = _Page(report, by_sample, order, images)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(printable(page.html()), encoding="utf-8")


def _rank(faults) -> int:
    """Return 0: with an error, 1: with a warning, 2: clean."""
    return min((("error", "warning").index(fault.severity) for fault in faults), default=2)


def _with_images(order: list[str], by_sample: dict[str, list[Fault]]) -> list[str]:
    faulty = [sample_id for sample_id in order if by_sample.get(sample_id)]
    clean = [sample_id for sample_id in order if not by_sample.get(sample_id)]
    return (faulty + clean[:MAX_CLEAN_IMAGES])[:MAX_IMAGES]


def _draw(report: DataReport, sample_ids: list[str], num_workers: int | None) -> dict[str, SampleImages]:
    """Return {sample id: images}, as many as the page has room for."""
    channels = report.settings.get("channels", {})
    try:
        folder = list_data_folder(report.data_root, list(channels))
    except DataError:  # the report says so
        return {}
    samples: dict[str, Sample] = {sample.sample_id: sample for sample in folder.samples}
    settings = CheckSettings(channels, 1, (1, 1), report.settings.get("music_feature_fps"))
    bare = dataclasses.replace(folder, samples=[], strays=[], unread=[])
    shown = [sample_id for sample_id in sample_ids if sample_id in samples]
    drawn = map_in_processes(
        functools.partial(draw_sample, bare, settings), [samples[sample_id] for sample_id in shown],
        num_workers=num_workers, title="drawing report", crashed=no_images,
    )  # fmt: skip
    sizes = np.cumsum([images.num_bytes for images in drawn])
    room = int(np.searchsorted(sizes, MAX_IMAGE_BYTES, side="right"))
    return dict(zip(shown[:room], drawn[:room], strict=True))


class _Page:
    def __init__(
        self, report: DataReport, by_sample: dict[str, list[Fault]], order: list[str],
        images: dict[str, SampleImages],
    ) -> None:  # fmt: skip
        self.report, self.by_sample, self.order, self.images = report, by_sample, order, images
        self.anchors = {sample_id: f"sample-{number}" for number, sample_id in enumerate(order)}

    def html(self) -> str:
        shown = [sample_id for sample_id in self.order if sample_id in self.images]
        shown += [s for s in self.order if s not in self.images and self.by_sample.get(s)]
        cards = [self.card(sample_id) for sample_id in shown]
        parts = [
            "<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8" />',
            '<meta name="viewport" content="width=device-width, initial-scale=1" />',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}" />',
            f"<title>Data report: {text(self.report.data_root)}</title>",
            f"<style>{STYLE_PATH.read_text(encoding='utf-8')}</style>", "</head>", "<body>", "<main>",
            self.head(), self.counts(), self.faults(), self.notes(),
            "<h2>Samples</h2>" if cards else "", *cards, self.listed(set(shown)),
            "</main>", "</body>", "</html>",
        ]  # fmt: skip
        return "\n".join(part for part in parts if part) + "\n"

    # ---- the top ----

    def head(self) -> str:
        report, warnings = self.report, len(self.report.faults) - len(self.report.errors)
        if report.errors:
            verdict = f'<span class="pill error">{count(len(report.errors), "error")}</span>'
        elif warnings:
            verdict = f'<span class="pill warning">{count(warnings, "warning")}</span>'
        else:
            verdict = '<span class="pill good">no faults</span>'
        decoded = "Every frame of every video was decoded."
        if not report.decoded:
            decoded = "Of each video the first and the last frame were decoded; --check_data decodes all."
        return (
            f'<div class="head"><h1>Data report</h1>{verdict}</div>\n'
            f"<p><code>{text(report.data_root)}</code></p>\n"
            f'<p class="soft small">{text(self.settings())} {decoded}</p>'
        )

    def settings(self) -> str:
        settings = self.report.settings
        if not settings:
            return ""
        types = ", ".join(f"{name} ({number})" for name, number in settings["channels"].items())
        height, width = settings["resolution"]
        fps = settings["music_feature_fps"]
        rate = f", music at {fps:g} rows a second" if fps else ""
        span = count(settings["clip_span"], "frame")
        return f"Checked for {types}, {width}x{height} pixels, clips that span {span}{rate}."

    def counts(self) -> str:
        report = self.report
        videos = [facts for facts in report.samples.values() if "frames" in facts]
        frames, seconds = sum(facts["frames"] for facts in videos), sum(map(video_seconds, videos))
        faulty = len(set(self.by_sample) - {""})
        warnings = len(report.faults) - len(report.errors)
        values = [
            (len(report.samples), "samples", ""), (faulty, "with faults", "some" if faulty else ""),
            (len(report.errors), "errors", "some" if report.errors else ""),
            (warnings, "warnings", "few" if warnings else ""),
            (f"{frames:,}", "frames", ""), (_duration(seconds), "of video", ""),
        ]  # fmt: skip
        tiles = "".join(f'<div><b class="{kind}">{v}</b>{text(name)}</div>' for v, name, kind in values)
        return f'<div class="counts">{tiles}</div>'

    def faults(self) -> str:
        if not self.report.faults:
            return ""
        items = "\n".join(self.fault(fault, link=True) for fault in self.report.errors_first)
        return f'<h2>Faults</h2>\n<div class="card"><ul class="faults">\n{items}\n</ul></div>'

    def fault(self, fault: Fault, *, link: bool = False) -> str:
        anchor = self.anchors.get(fault.sample_id) if link else None
        sample = f' <a href="#{anchor}">{text(fault.sample_id)}</a>' if anchor else ""
        return (
            f'<li><span class="pill {fault.severity}">{fault.severity}</span>{sample}\n'
            f"<code>{text(self.shown_path(fault.path))}</code>\n"
            f'<span class="problem is-{fault.severity}">{text(fault.problem)}</span>\n'
            f'<span class="fix"><span class="soft">Fix:</span> {text(fault.fix)}</span></li>'
        )

    def shown_path(self, path: str) -> str:
        """Return the path in the data folder; the head of the page names that."""
        root = self.report.data_root.rstrip("/\\")
        return path[len(root) + 1 :] if path[: len(root) + 1] in (root + "/", root + "\\") else path

    def notes(self) -> str:
        if not self.report.notes:
            return ""
        items = "".join(f"<li>{text(note)}</li>" for note in self.report.notes)
        return f'<h2>Notes</h2>\n<div class="card"><ul class="notes">{items}</ul></div>'

    # ---- samples ----

    def card(self, sample_id: str) -> str:
        faults, images = self.by_sample.get(sample_id, []), self.images.get(sample_id)
        rank = _rank(faults)
        kind = ("card bad", "card doubtful", "card")[rank]
        word = [count(len(faults), "fault")] * 2 + ["no faults"]
        pill = f'<span class="pill {("error", "warning", "good")[rank]}">{word[rank]}</span>'
        items = "\n".join(self.fault(fault) for fault in faults)
        parts = [
            f'<section class="{kind}" id="{self.anchors[sample_id]}">',
            f'<div class="head"><h3>{text(sample_id)}</h3>{pill}</div>',
            facts_list(self.report.samples[sample_id]),
            f'<ul class="faults">\n{items}\n</ul>' if faults else "",
            metadata_notes(images.metadata) if images else "",
            look(images) if images else "",
            "</section>",
        ]
        return "\n".join(part for part in parts if part)

    def listed(self, shown: set[str]) -> str:
        """Return the samples without images, one line each: there is no room for all."""
        rest = [sample_id for sample_id in self.order if sample_id not in shown]
        if not rest:
            return ""
        lines = []
        for sample_id in rest[:MAX_LISTED]:
            facts = self.report.samples[sample_id]
            cells = (
                sample_id,
                facts.get("frames", ""),
                facts.get("seconds", ""),
                facts.get("frame_rate", ""),
            )
            row = "".join(f"<td>{text(cell)}</td>" for cell in cells)
            lines.append(f'<tr id="{self.anchors[sample_id]}">{row}</tr>')
        more = len(rest) - len(lines)
        left = f"<p>And {more:,} more, all in the JSON report beside this page.</p>" if more else ""
        head = "".join(f"<th>{name}</th>" for name in ("sample", "frames", "last frame at (s)", "frames/s"))
        body = "\n".join(lines)
        return (
            f"<h2>{len(rest):,} more samples without faults</h2>\n"
            "<p>Shown without images, to keep this page small.</p>\n"
            f'<div class="card"><table><thead><tr>{head}</tr></thead>\n'
            f"<tbody>\n{body}\n</tbody></table>{left}</div>"
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours and not minutes:
        return f"{seconds:.1f} s"
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"
