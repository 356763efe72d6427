"""The page's script, and the page where Gradio is installed: no server, no browser, no model."""

import asyncio
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import app
from page.examples import find_examples
from page.request import Served, flags_of
from page.server import HEADERS, OwnAddressOnly, check_address
from page.visits import Visits
from page.work import Outcome, Work, line_html
from sample_guidance import parse_arguments
from system.errors import ConfigError

try:
    import gradio
except ImportError:
    gradio = None
needs_gradio = pytest.mark.skipif(gradio is None, reason="Gradio (requirements-app.txt) is not installed")


# ---- The script ----


def test_a_page_without_gradio_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert app.main(["--model_path", "final"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("app.py: error: the page needs Gradio") and message.count("\n") == 1
    assert "pip install -r requirements-app.txt" in message


def test_an_address_that_cannot_be_had_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=f"--port {port}: cannot be had on 127.0.0.1 .*choose another --port"
        ):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(ConfigError, match="--port 70000"):
        check_address("127.0.0.1", 70_000)
    for host in ("no such host", "192.0.2.1"):
        with pytest.raises(ConfigError, match=f"--host {host}: is no address of this machine"):
            check_address(host, 7860)


def test_the_page_is_for_this_machine_alone_unless_told_otherwise():
    arguments = app.parse_arguments(["--model_path", "final"])
    assert (arguments.host, arguments.port, arguments.max_upload_mb) == ("127.0.0.1", 7860, 200)


def test_examples_are_those_of_validation_on_this_machine_alone(tiny_data, tmp_path):
    (tmp_path / "config.yaml").write_text(f"validation_data_dir: {tiny_data}\n", encoding="utf-8")
    argv = ["--model_path", str(tmp_path / "final")]
    assert app.ready_examples(app.parse_arguments(argv), ("pose", "music"))
    assert app.ready_examples(app.parse_arguments([*argv, "--host", "0.0.0.0"]), ("pose",)) == []
    (tmp_path / "config.yaml").write_text("validation_data_dir: null\n", encoding="utf-8")
    assert app.ready_examples(app.parse_arguments(argv), ("pose",)) == []
    assert app.beside(tmp_path / "final") is None
    (tmp_path / "music_to_pose" / "final").mkdir(parents=True)
    assert app.beside(tmp_path / "final") == tmp_path / "music_to_pose" / "final"


def test_answers_let_the_browser_ask_this_server_alone():
    sent = []

    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})

    async def send(message):
        sent.append(message)

    asyncio.run(OwnAddressOnly(answer)({"type": "http"}, None, send))
    headers = dict(sent[0]["headers"])
    assert headers[b"a"] == b"b" and len(headers) == 1 + len(HEADERS)
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy


# ---- The page ----


@pytest.fixture
def page(tiny_data, tmp_path, monkeypatch):
    """(parts, events, blocks) of a page whose jobs write one file."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    from page.events import Events, build_page
    from page.layout import Parts

    def sample(flags, on_progress):
        on_progress("sampling", 1, 1)
        path = Path(flags[flags.index("--output") + 1])
        path.touch()
        return SimpleNamespace(paths=[path], summary="a film", seconds=1.0, notes=[])

    served = Served(tmp_path, tmp_path, ("pose", "music"), 8.0, 1, {}, {}, refusals={"song": "no"})
    parts = Parts(served, find_examples(tiny_data, ("pose", "music")), 1000, is_fast=False)
    work = Work(sample, served, Visits(tmp_path))
    blocks = build_page(parts, work)
    events = Events(parts, work)
    events.chosen = "chosen"
    return parts, events, blocks


@pytest.fixture
def values(page):
    """What the page hands on when nothing was touched."""
    parts, _, _ = page
    fields = [*parts.settings.values(), *parts.weights.values(), parts.seconds, parts.start, parts.fits_body]
    fields += [parts.is_smooth, parts.is_heard, parts.two_grids, parts.is_guided_briefly]
    untouched = {one: one.value for one in fields} | dict.fromkeys(parts.inputs.values())
    return untouched | {"chosen": {"kind": "video", "image": None, "video": None, "song": None}}


VISIT = SimpleNamespace(session_hash="visit", headers={"accept-language": "en"})


@needs_gradio
def test_one_job_at_a_time_and_nothing_is_open_to_programs(page):
    _, _, blocks = page
    functions = [one for one in blocks.fns.values() if one.targets[0][1] != "unload"]
    assert [(one.name, one.concurrency_limit) for one in functions if one.queue] == [("make", "default")]
    assert blocks._queue.default_concurrency_limit == 1
    assert not blocks.analytics_enabled and not blocks.api_open
    assert {one.api_visibility for one in functions} == {"private"}


@needs_gradio
def test_a_ready_example_makes_a_video(page, values, tmp_path):
    parts, events, _ = page
    image, video, chosen, _ = events.example_of("video")(values["chosen"], VISIT, SimpleNamespace(index=0))
    assert Path(image).parent == Path(video).parent == events.visits.folder("visit")
    line, result, _, _, download = events.make(values | {"chosen": chosen}, VISIT, lambda *_, **__: None)
    assert "Made in 1 s: a film." in line.value
    assert (
        Path(result).is_file() and tmp_path in Path(result).parents and download.value["path"] == str(result)
    )
    events.left(VISIT)
    assert not Path(result).exists()


@needs_gradio
def test_ticked_settings_become_flags(page, values):
    parts, events, _ = page
    *_, chosen, _ = events.example_of("video")(values["chosen"], VISIT, SimpleNamespace(index=0))
    ticked = values | {"chosen": chosen, parts.is_guided_briefly: True, parts.two_grids: True}
    given, usual = (
        parse_arguments(flags_of(events.request(one, "en"), parts.served, Path("out.mp4")))
        for one in (ticked, values | {"chosen": chosen})
    )
    assert list(given.guidance_interval) == [1, 8] and given.window_grids == 2
    assert usual.guidance_interval is None and usual.window_grids == 1


@needs_gradio
def test_what_is_missing_or_wrong_is_one_line(page, values, tmp_path):
    parts, events, _ = page
    line, result, *_ = events.make(values, VISIT, None)
    assert line.value == line_html(Outcome("Choose an image of a person first.", is_error=True))
    assert result is None
    text = tmp_path / "dance.mp4"
    text.write_text("#EXTM3U", encoding="utf-8")
    given, chosen, line = events.uploaded("video")(str(text), values["chosen"] | {"video": 1}, VISIT)
    assert given is None and chosen["video"] is None and "is not a video" in line.value
    inputs = {parts.inputs["image"]: str(text), parts.inputs["video"]: str(text)}
    line, *_ = events.make(values | inputs, VISIT, None)
    assert "is not an image" in line.value


@needs_gradio
def test_uploads_are_neither_opened_by_gradio_nor_fetched(page):
    parts, _, _ = page
    for component in parts.inputs.values():
        assert component.preprocess(SimpleNamespace(path="any/file")) == "any/file"
        with pytest.raises(gradio.Error, match="only uploaded files"):
            asyncio.run(component.async_move_resource_to_block_cache("https://example.com/a.png"))
    names = {name: component.get_block_name() for name, component in parts.inputs.items()}
    assert names == {"image": "image", "video": "video", "song": "audio"}
    assert not list(Path(app.__file__).parent.glob("page/*.pyi"))
