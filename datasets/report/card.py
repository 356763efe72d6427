"""A sample's part of the report page: its facts as words, its images under one time axis, as HTML."""

from __future__ import annotations

import base64
import html

import numpy as np

from datasets.checking.data_report import printable

from .images import FeatureGraph, SampleImages

GRAPH_WIDTH, GRAPH_HEIGHT, LINE_HEIGHT = 1000, 118, 46  # of the drawing's own units
UNIT_WORDS = {"normalized": "in 0..1 of the frame", "pixel": "in pixels"}
ONSET_FIRST = (1, 35)  # music of these widths begins with onset strength: the documented one, AIST++'s
NARROW_HINT = '<span class="narrow">: swipe sideways for the rest</span>'


def text(value: object) -> str:
    """Return a value as text of the page: escaped, and without characters that no page may have."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))
    return html.escape(printable(shown))


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def image_source(image: bytes) -> str:
    return "data:image/webp;base64," + base64.b64encode(image).decode()


# ---- words ----


def facts_list(facts: dict) -> str:
    """Return a sample's facts as a list of terms: the video's, then one of each guidance type."""
    terms = []
    if "frames" in facts:
        terms.append(("video", _video_words(facts)))
    terms += [(name, _type_words(value)) for name, value in facts.items() if isinstance(value, dict)]
    if "reference_size" in facts:
        height, width = facts["reference_size"]
        terms.append(("reference", f"{width}x{height}"))
    items = "".join(f"<div><dt>{text(name)}</dt><dd>{text(words)}</dd></div>" for name, words in terms)
    return f'<dl class="facts">{items}</dl>' if terms else ""


def video_seconds(facts: dict) -> float:
    """Return the length of a video; its facts tell the last frame's time."""
    return facts["seconds"] + 1 / max(facts["frame_rate"], 1e-6)


def _video_words(facts: dict) -> str:
    height, width = facts["size"]
    sound = "with sound" if facts["has_audio"] else "no sound"
    frames, rate = count(facts["frames"], "frame"), f"{facts['frame_rate']:g} frames/s"
    return f"{frames}, {video_seconds(facts):.2f} s, {rate}, {width}x{height}, {sound}"


def _type_words(facts: dict) -> str:
    words = [f"{count(facts['rows'], 'row')} of {facts['kind'].replace('_', ' ')}"]
    if "shape" in facts:
        sides = facts["shape"]
        words.append(f"{count(sides[0], 'value') if len(sides) == 1 else ' x '.join(map(str, sides))} each")
    if "coordinates" in facts:
        stated = "as stated" if facts.get("coordinates_stated") else "units not stated"
        words[0] += f" {UNIT_WORDS[facts['coordinates']]} ({stated})"
    if facts.get("frames_without_points"):
        words.append(f"{facts['frames_without_points']:,} without a point")
    words.append("a row a frame" if facts["fps"] is None else f"{facts['fps']:g} rows/s")
    return ", ".join(words)


def metadata_notes(metadata: dict) -> str:
    """Return what the preparation of a video noted, as a list."""
    source = metadata.get("source")
    name = source.get("file") if isinstance(source, dict) else source
    notes = [f"from {name}"] if name else []
    notes += metadata.get("notes", [])
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f'<ul class="notes small">{items}</ul>' if items else ""


# ---- images ----


def look(images: SampleImages) -> str:
    """Return the reference image, and beside it frames, maps and features under one time axis."""
    figure = ""
    if images.reference:
        source = image_source(images.reference)
        figure = (
            f'<figure><figcaption>reference</figcaption><img src="{source}" alt="reference image" /></figure>'
        )
    timeline = _timeline(images)
    if not figure and not timeline:
        return ""
    kind = "look" if figure and timeline else "look alone"
    return f'<div class="{kind}">{figure}\n{timeline}</div>'


def _timeline(images: SampleImages) -> str:
    if not images.frames:
        return ""
    ticks = "".join(f"<span>{seconds:.2f} s</span>" for seconds in images.tile_seconds)
    frames = ", ".join(map(str, images.tile_frames))
    rows = [
        _strip("frames with key points", images.frames, f"frames {frames}", NARROW_HINT),
        f'<div class="axis">{ticks}</div>',
    ]
    if images.undecodable:
        missing = ", ".join(map(str, images.undecodable))
        rows.append(f'<p class="caption">Crossed out: frames that cannot be decoded ({missing}).</p>')
    rows += [_strip(name, image, f"{name} of frames {frames}") for name, image in images.maps.items()]
    rows += [_graph(graph, images) for graph in images.graphs]
    return '<div class="scroll"><div class="time">\n' + "\n".join(rows) + "\n</div></div>"


def _strip(caption: str, image: bytes, description: str, hint: str = "") -> str:
    source = image_source(image)
    return (
        f'<div class="caption">{text(caption)}{hint}</div>\n<img src="{source}" alt="{text(description)}" />'
    )


def _graph(graph: FeatureGraph, images: SampleImages) -> str:
    """Return a type's features as a drawing: beat ticks behind the first feature's line, colours below."""
    name = text(graph.type_name)
    line_height = LINE_HEIGHT if graph.heat else GRAPH_HEIGHT
    beats = images.beats if graph.type_name == "music" else []
    is_onset = graph.type_name == "music" and graph.num_features in ONSET_FIRST
    what = "onset strength" if is_onset else "feature 0"
    caption = [f"{name}: the line is {what}"]
    if graph.heat:
        caption.append(f"colours are features 1 to {graph.num_features - 1}, each over its own range")
    if beats:
        caption.append(f"ticks are {count(len(beats), 'beat')} ({text(images.beat_source)})")
    ticks = "".join(f"M{place * GRAPH_WIDTH:.1f} 0V{GRAPH_HEIGHT}" for place in beats)
    shapes = []
    if graph.heat:
        height = GRAPH_HEIGHT - line_height - 4
        shapes.append(
            f'<image href="{image_source(graph.heat)}" x="0" y="{line_height + 4}" width="{GRAPH_WIDTH}" '
            f'height="{height}" preserveAspectRatio="none" />'
        )
    stroke = 'fill="none" vector-effect="non-scaling-stroke"'
    if ticks:
        shapes.append(f'<path d="{ticks}" stroke="#e0447c" stroke-width="1.2" opacity="0.75" {stroke} />')
    path = _line_path(graph.line, line_height)
    shapes.append(f'<path d="{path}" stroke="#1f5fbf" stroke-width="1.8" stroke-linejoin="round" {stroke} />')
    kind = "" if graph.heat else ' class="one"'
    return (
        f'<div class="caption">{"; ".join(caption)}</div>\n'
        f'<svg{kind} viewBox="0 0 {GRAPH_WIDTH} {GRAPH_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{name} over time">{"".join(shapes)}</svg>'
    )


def _line_path(line: np.ndarray, height: float) -> str:
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
        moves.append(f"{command}{place * GRAPH_WIDTH:.1f} {height - 4 - level * (height - 8):.1f}")
        command = "L"
    return "".join(moves)
