"""The report's page: all of it is there, at the right time, well-formed, escaped and without the network."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from PIL import Image

from datasets import DataReport, Fault, write_report_page
from datasets.checking.sample_check import CheckSettings
from datasets.data_folder import list_data_folder
from datasets.report import page as report_page
from datasets.report.images import NUM_TILES, TILE_WIDTH, draw_sample

HOSTILE = "<img src=x onerror=alert(1)> & \"me\" 'you' \x07"


@pytest.fixture
def page(check, tmp_path):
    """page(root, ...): (text of the page, its root element, the report)."""

    def make(root, **changes):
        report = check(root, **changes)
        path = tmp_path / "pages" / "data_report.html"
        write_report_page(report, path, num_workers=1)
        text = path.read_text(encoding="utf-8")
        return text, ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>")), report

    return make


def rename_sample(root, old, new):
    for path in list(root.glob(f"*/{old}*")):
        path.rename(path.with_name(path.name.replace(old, new)))


def words_of(element) -> str:
    return " ".join("".join(element.itertext()).split())


class Attributes(HTMLParser):
    """What a browser's parser makes of a page: tags, and attributes that may lead elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.ids, self.handlers = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.ids += [value for name, value in attrs if name == "id"]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_every_sample_and_every_fault_is_on_the_page(data_root, page):
    rename_sample(data_root, "dance_001", HOSTILE)
    np.save(data_root / "music_features" / HOSTILE / "frame_003.npy", np.full(5, np.nan))
    (data_root / "reference_images" / f"{HOSTILE}.png").write_bytes(b"nothing")
    (data_root / "poses" / "<b>stray").mkdir()
    text, root, report = page(data_root)
    assert len(report.faults) == 2
    words = words_of(root)
    shown = HOSTILE.replace("\x07", "\\x07")
    for fault in report.faults:
        path = fault.path.removeprefix(f"{data_root}/").replace("\x07", "\\x07")
        assert words.count(fault.problem.replace("\x07", "\\x07")) == 2  # in the list, and at the sample
        assert path in words and f"Fix: {fault.fix}" in words
    assert [words_of(h3) for h3 in root.iter("h3")] == [shown, "dance_002"]  # faulty ones first
    assert "belongs to no video" in words
    found = Attributes(text)
    assert found.handlers == [] and found.tags & {"script", "link", "iframe", "b"} == {"b"}
    assert "<b>stray" not in text and "<img src=x" not in text


def test_the_page_needs_no_network_and_its_links_lead_somewhere(data_root, page):
    (data_root / "reference_images" / "dance_001.png").unlink()
    text, _, _ = page(data_root)
    found = Attributes(text)
    assert {"img", "svg", "image", "a"} <= found.tags
    anchors = [link[1:] for link in found.links if link.startswith("#")]
    assert anchors and set(anchors) <= set(found.ids) and len(found.ids) == len(set(found.ids))
    assert all(link.startswith(("#", "data:image/webp;base64,")) for link in found.links)
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    for link in found.links:
        if link.startswith("data:"):
            Image.open(io.BytesIO(base64.b64decode(link.split(",", 1)[1]))).verify()


def test_facts_are_in_words(data_root, page):
    (data_root / "metadata").mkdir()
    source = {"file": "raw/dance.mov", "size": 1}
    notes = {"notes": ["two people, the <larger> one"], "source": source, "beat_seconds": [0.5, 1.0]}
    (data_root / "metadata" / "dance_002.json").write_text(json.dumps(notes))
    _, root, _ = page(data_root)
    words = words_of(root)
    for part in (
        "24 frames, 2.00 s, 12 frames/s, 64x64, no sound",
        "24 rows of features, 5 values each, one row per frame",
        "24 rows of key points in 0..1 of the frame (units not stated)", "two people, the <larger> one",
        "from raw/dance.mov", "ticks are 2 beats (metadata)", "Every frame of every video was decoded.",
        "Checked for music (5), pose (134), 64x64 pixels, clips that span 4 frames.",
    ):  # fmt: skip
        assert part in words


@pytest.mark.parametrize("missing", ["", "videos", "poses"])
def test_a_folder_without_samples_has_a_page(data_root, page, missing):
    shutil.rmtree(data_root / missing)
    _, root, report = page(data_root)
    assert report.faults[0].problem in words_of(root)


def test_many_samples_are_listed_but_not_all_are_pictured(shared_root, page, monkeypatch):
    monkeypatch.setattr(report_page, "MAX_CLEAN_IMAGES", 1)
    text, root, _ = page(shared_root)
    assert text.count("<h3>") == 1 and "2 more samples without faults" in words_of(root)
    assert [row[0].text for row in root.iter("tr")][1:] == ["dance_002", "dance_003"]
    monkeypatch.setattr(report_page, "MAX_IMAGE_BYTES", 0)
    assert "<img" not in page(shared_root)[0]


# -- Pictures


@pytest.fixture
def draw():
    """draw(root, {type: channels}, fps): the pictures of the first sample."""

    def make(root, channels, fps=None):
        folder = list_data_folder(root, list(channels))
        return draw_sample(folder, CheckSettings(channels, 1, (64, 64), fps), folder.samples[0])

    return make


def tiles_of(strip: bytes) -> list[np.ndarray]:
    picture = np.asarray(Image.open(io.BytesIO(strip)).convert("RGB"))
    return np.split(picture, picture.shape[1] // TILE_WIDTH, axis=1)


def test_tiles_show_the_frames_at_their_times(shared_root, draw, read_number):
    pictures = draw(shared_root, {"music": 5})
    assert pictures.tile_frames == [1, 4, 7, 10, 13, 16, 19, 22] and len(pictures.tile_frames) == NUM_TILES
    assert np.allclose(pictures.tile_seconds, np.array(pictures.tile_frames) / 12)
    assert [read_number(tile) for tile in tiles_of(pictures.frames)] == pictures.tile_frames


def test_key_points_lie_on_the_tiles(data_root, draw):
    for path in (data_root / "poses" / "dance_001").iterdir():
        points = np.zeros((134, 3))
        points[4] = [0.75, 0.25, int(path.stem[-3:]) >= 12]  # a wrist, in the second half
        path.write_text(json.dumps({"keypoints": points.tolist()}))
    plain, drawn = (draw(data_root, {name: n}) for name, n in (("music", 5), ("pose", 134)))
    for place, (without, tile) in enumerate(zip(tiles_of(plain.frames), tiles_of(drawn.frames), strict=True)):
        change = np.abs(tile.astype(int) - without).max(-1)
        if place < 4:
            assert change.max() < 40
        else:
            rows, columns = np.nonzero(change > 80)
            assert np.abs(rows.mean() - 36) < 4 and np.abs(columns.mean() - 108) < 4


def test_frames_that_are_lost_are_crossed_out(data_root, draw, write_numbered, read_number):
    path = write_numbered(data_root / "videos" / "dance_001.mp4", 24, options={"g": "4", "bf": "0"})
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for place, size in packets[12:16]:  # a group of pictures: 12, and 13 to 15 that build on it
        content[place : place + size] = bytes(size)
    path.write_bytes(content)
    pictures = draw(data_root, {"music": 5})
    assert pictures.undecodable == [13]
    tiles = tiles_of(pictures.frames)
    assert [read_number(tile) for tile in tiles[:4]] == [1, 4, 7, 10]
    assert np.abs(tiles[4][20, 60].astype(int) - (250, 214, 214)).max() < 12
    path.write_bytes(b"nothing")
    pictures = draw(data_root, {"music": 5})
    assert pictures.frames is None and pictures.reference


def test_beats_and_features_lie_at_their_times(data_root, draw):
    music = data_root / "music_features" / "dance_001"
    shutil.rmtree(music)
    features = np.random.default_rng(0).normal(size=(48, 35))
    features[:, 0], features[:, 34] = np.arange(48), 0
    features[[12, 36], 34] = 1
    np.save(f"{music}.npy", features)
    pictures = draw(data_root, {"music": 35}, fps=24)  # the video: 2 s, of 12 frames a second
    assert np.allclose(pictures.beats, [0.25, 0.75])
    (graph,) = pictures.graphs
    assert np.allclose(graph.line[:, 0], np.arange(48) / 48) and np.allclose(graph.line[:, 1], np.arange(48))

    (data_root / "metadata").mkdir()
    (data_root / "metadata" / "dance_001.json").write_text('{"beat_seconds": [0.5, 1.5, 2.5]}')
    assert np.allclose(
        draw(data_root, {"music": 35}, fps=24).beats, [0.25, 0.75]
    )  # the last is behind the end


def test_music_that_ends_early_ends_early_in_the_picture(data_root, draw):
    for number in range(12, 24):
        (data_root / "music_features" / "dance_001" / f"frame_{number:03d}.npy").unlink()
    (graph,) = draw(data_root, {"music": 5}).graphs
    assert graph.line[-1, 0] < 0.5
    heat = np.asarray(Image.open(io.BytesIO(graph.heat)).convert("RGB"))
    assert np.abs(heat[0, -5:].astype(int) - (250, 214, 214)).max() < 12


def test_maps_are_drawn_under_their_frames(data_root, draw):
    (data_root / "depth" / "dance_001").mkdir(parents=True)
    for number in range(24):
        Image.new("L", (32, 32), 10 * number).save(data_root / "depth" / "dance_001" / f"frame_{number}.png")
    pictures = draw(data_root, {"depth": 1})
    levels = [tile[20:40, 20:40].mean() / 10 for tile in tiles_of(pictures.maps["depth"])]
    assert np.allclose(levels, pictures.tile_frames, atol=0.5)


def test_dances_are_drawn_without_videos(data_root, page):
    shutil.rmtree(data_root / "videos")
    (data_root / "metadata").mkdir()
    for sample_id in ("dance_001", "dance_002"):
        (data_root / "metadata" / f"{sample_id}.json").write_text('{"frame_rate": 12}')
    _, root, report = page(data_root, needs_videos=False)
    assert report.ok and report.samples["dance_001"]["seconds"] == pytest.approx(23 / 12, abs=1e-3)
    words = words_of(root)
    assert "without videos" in words and "24 frames, 2.00 s, 12 frames/s" in words and "of dance" in words
    assert "decoded" not in words and "size of the frame is not known in 2 of 2 samples" in words
    strips = [image for image in root.iter("img") if image.get("alt", "").startswith("frames ")]
    assert len(strips) == 2


def test_of_many_samples_the_page_shows_the_worst_and_counts_the_rest(tmp_path):
    settings = {"channels": {}, "clip_span": 4, "resolution": [64, 64], "music_feature_fps": None}
    report = DataReport("/data", settings=settings)
    for number in range(3000):
        name = f"dance_{number:04d}"
        report.samples[name] = {"frames": 2, "seconds": 1.0, "frame_rate": 1.0}
        if number % 2:
            severity = "error" if number > 2500 else "warning"
            problem = f"{number} rows of pose for 24 frames"
            report.faults.append(Fault(name, f"/data/poses/{name}", problem, "make one for each", severity))
        report.notes.append(f"note {number}")
    path = tmp_path / "page.html"
    write_report_page(report, path, num_workers=0)
    page = path.read_text(encoding="utf-8")
    assert '<b class="some">1,500</b>with faults' in page and '<b class="">6,000</b>frames' in page
    assert page.count("<section") == report_page.MAX_SECTIONS
    assert '<section class="card bad" id="sample-0">' in page
    assert page.count('<li><span class="pill error"') == 2 * 250  # in the list, and each in its section
    for more in ("500 more, all in", "1,000 more with faults", "2,800 more, all in"):
        assert f"And {more}" in page
    (errors, warnings) = re.findall(r"<td>([\d,]+)</td><td>… rows of pose for … frames</td>", page)
    assert (errors, warnings) == ("250", "1,250")
    anchors = set(re.findall(r'href="#([^"]+)"', page))
    assert anchors <= set(re.findall(r'id="([^"]+)"', page))
    assert len(page) < 1_000_000
