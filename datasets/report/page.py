"""The data report as one HTML page to look at: faults first, then every sample with images over its time.

The page holds all that it shows: no network, no script. page.html is its template: what comes from file names
and files is escaped there.
"""

import base64
import dataclasses
import functools
import re
from collections import defaultdict
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from datasets.checking.data_report import DataReport, Fault
from datasets.checking.sample_check import CheckSettings
from datasets.data_folder import DataFolder, Sample, list_data_folder
from system.errors import DataError
from system.processes import map_in_processes

from .images import SampleImages, draw_sample, no_images

MAX_CLEAN_IMAGES = 60  # samples without a fault that are shown with images
MAX_IMAGES = 200  # samples shown with images in all
MAX_IMAGE_BYTES = 20_000_000  # a third more in the page, where they are text
MAX_LISTED = 3000  # samples without images; the JSON has all
MAX_SECTIONS = 500  # samples with a section of their own, with images or faults
MAX_FAULTS, MAX_NOTES = 1000, 200  # in the lists
MANY_FAULTS, MAX_KINDS = 100, 50  # from so many on there is a table of their kinds
VARYING = re.compile(r"'[^']*'|\d[\d.,]*")


@dataclasses.dataclass
class Card:
    """A sample on the page."""

    sample_id: str
    facts: dict
    faults: list[Fault]
    anchor: str = ""
    images: SampleImages | None = None

    @property
    def jumps(self) -> list[int]:
        """The frames that its tracks jump to."""
        found = [fact["jumps"] for fact in self.facts.values() if isinstance(fact, dict) and "jumps" in fact]
        return sorted({frame for jumps in found for frames in jumps.values() for frame in frames})

    @property
    def rank(self) -> int:
        """Return 0: with an error, 1: with a warning, 2: clean."""
        return min((("error", "warning").index(fault.severity) for fault in self.faults), default=2)


@dataclasses.dataclass
class FaultKind:
    """Faults that differ in numbers and names alone."""

    example: Fault  # the first
    count: int = 0

    @property
    def problem(self) -> str:
        return self.example.problem if self.count == 1 else VARYING.sub("…", self.example.problem)


@dataclasses.dataclass
class Totals:
    """Of all samples, which the page may be too small for."""

    samples: int
    faulty: int
    frames: int
    seconds: float


def write_report_page(report: DataReport, path: str | Path, *, num_workers: int | None = None) -> None:
    """Write the page of a report. Reads the images from the report's data folder anew.

    However many samples there are, it shows the worst ones, and counts the others.
    """
    cards = _cards(report)
    num_faulty = sum(bool(card.faults) for card in cards)
    _draw(report, cards[: min(num_faulty + MAX_CLEAN_IMAGES, MAX_IMAGES)], num_workers)
    shown = [card for card in cards if card.images]
    shown += [card for card in cards if not card.images and card.faults][: MAX_SECTIONS - len(shown)]
    rest = [card for card in cards if not card.images and not card.faults]
    faults = report.errors_first
    page = page_templates().get_template("page.html").render(
        report=report, totals=_totals(report), kinds=_kinds(faults) if len(faults) >= MANY_FAULTS else [],
        faults=faults[:MAX_FAULTS], num_more_faults=len(faults[MAX_FAULTS:]),
        notes=report.notes[:MAX_NOTES], num_more_notes=len(report.notes[MAX_NOTES:]),
        anchors={card.sample_id: card.anchor for card in shown}, shown=shown,
        num_more_faulty=num_faulty - sum(bool(card.faults) for card in shown),
        listed=rest[:MAX_LISTED], num_more=len(rest[MAX_LISTED:]),
    )  # fmt: skip
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(page, encoding="utf-8")


def _cards(report: DataReport) -> list[Card]:
    """Return the samples, faulty ones first."""
    faults: dict[str, list[Fault]] = defaultdict(list)
    for fault in report.faults:
        faults[fault.sample_id].append(fault)
    cards = [Card(sample_id, facts, faults.get(sample_id, [])) for sample_id, facts in report.samples.items()]
    cards.sort(key=lambda card: (card.rank, card.sample_id))
    for number, card in enumerate(cards):
        card.anchor = f"sample-{number}"
    return cards


def _totals(report: DataReport) -> Totals:
    videos = [facts for facts in report.samples.values() if "frames" in facts]
    faulty = len({fault.sample_id for fault in report.faults} & report.samples.keys())
    return Totals(
        len(report.samples), faulty, sum(facts["frames"] for facts in videos), sum(map(video_seconds, videos))
    )


def _kinds(faults: list[Fault]) -> list[FaultKind]:
    """Return the kinds of faults, errors first, the most frequent first."""
    kinds: dict[tuple[str, str], FaultKind] = {}
    for fault in faults:
        kind = kinds.setdefault((fault.severity, VARYING.sub("…", fault.problem)), FaultKind(fault))
        kind.count += 1
    worst = sorted(kinds.values(), key=lambda kind: (kind.example.severity != "error", -kind.count))
    return worst[:MAX_KINDS]


def _draw(report: DataReport, cards: list[Card], num_workers: int | None) -> None:
    """Give the cards their images, as many as the page has room for."""
    channels = report.settings.get("channels", {})
    try:
        needs_videos = report.settings.get("needs_videos", True)
        folder = list_data_folder(report.data_root, list(channels), needs_videos=needs_videos)
    except DataError:  # the report says so
        return
    samples: dict[str, Sample] = {sample.sample_id: sample for sample in folder.samples}
    settings = CheckSettings(channels, 1, (1, 1), report.settings.get("music_feature_fps"))
    bare = dataclasses.replace(folder, samples=[], unread=[])
    cards = [card for card in cards if card.sample_id in samples]
    drawn = map_in_processes(
        functools.partial(_draw_card, bare, settings),
        [(samples[card.sample_id], card.jumps) for card in cards],
        num_workers=num_workers, title="drawing report", crashed=no_images,
    )  # fmt: skip
    sizes = np.cumsum([images.num_bytes for images in drawn])
    for card, images, size in zip(cards, drawn, sizes, strict=True):
        card.images = images if size <= MAX_IMAGE_BYTES else None


def _draw_card(folder: DataFolder, settings: CheckSettings, item: tuple[Sample, list[int]]) -> SampleImages:
    return draw_sample(folder, settings, *item)


# ---- the template's filters ----


def page_templates(*folders: Path) -> jinja2.Environment:
    """Return this folder's templates, its style and filters; other reports' own folders come first."""
    loader = jinja2.FileSystemLoader([*folders, Path(__file__).parent])
    templates = jinja2.Environment(
        loader=loader, autoescape=True, finalize=_printable, trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    filters = (count, duration, image_source, svg_path, video_seconds, within)
    templates.filters |= {function.__name__: function for function in filters}
    return templates


def _printable(value: object) -> str:
    """Return a value without characters that no page may have; the template's own markup as it is."""
    if isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours and not minutes:
        return f"{seconds:.1f} s"
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"


def image_source(image: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(image).decode()


def svg_path(line: np.ndarray, width: float, height: float) -> str:
    """Return points [n, 2] (place in 0..1, value) as an SVG path, scaled to their range; broken at NaN."""
    places, values = line[:, 0], line[:, 1]
    known = values[~np.isnan(values)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    levels = (values - low) / (high - low if high > low else 1)
    moves, command = [], "M"
    for place, level in zip(places, levels, strict=True):
        if np.isnan(level):
            command = "M"
            continue
        moves.append(f"{command}{place * width:.1f} {height - 4 - level * (height - 8):.1f}")
        command = "L"
    return "".join(moves)


def video_seconds(facts: dict) -> float:
    """Return the length of a video; its facts tell the last frame's time."""
    return facts["seconds"] + 1 / max(facts["frame_rate"], 1e-6)


def within(path: str, data_root: str) -> str:
    """Return the path in the data folder; the head of the page names that."""
    root = data_root.rstrip("/\\")
    return path[len(root) + 1 :] if path[: len(root) + 1] in (root + "/", root + "\\") else path
