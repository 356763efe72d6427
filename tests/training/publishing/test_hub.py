"""A final model pushed to a stand-in of the hub: the client's own requests, answered on this machine.

Large files go by git-lfs's protocol; to the real hub the client may prefer another, which is its own affair.
"""

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from system.errors import ConfigError, RunError
from tests.training import toy_trainer
from training.publishing.hub import open_repository, push
from training.settings.fields import RunSettings


class Hub(ThreadingHTTPServer):
    """What it was told: repositories {id: visibility}, and the files of each by its commits."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories, self.files, self.messages, self.objects = {}, {}, [], {}
        self.refuses = None  # part of the paths that are answered with an error


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Say nothing: the server's own log would stand among the tests' output."""

    def reply(self, content, status=200):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self):
        hub, path, body = self.server, self.path.split("?")[0], self.body()
        if hub.refuses is not None and hub.refuses in path:
            return self.reply({"error": "not today"}, 403)
        if path.startswith("/objects/"):  # where large files are put, without a token
            hub.objects[path.rsplit("/", 1)[1]] = body
            return self.reply({})
        if self.headers.get("Authorization") != "Bearer hf_ours":
            return self.reply({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization'] or 'me'}/{asked['name']}"
            status = 409 if name in hub.repositories else 200
            hub.repositories.setdefault(
                name, asked.get("visibility", "private" * asked.get("private", False))
            )
            return self.reply({"url": f"{hub.url}/{name}", "id": name}, status)
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            modes = [
                {
                    "path": file["path"], "shouldIgnore": False, "oid": None,
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                }
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            return self.reply({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{hub.url}/objects/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.reply({"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            return self.commit(path.split("/models/")[1].removesuffix("/commit/main"), body)
        return self.reply({"error": f"unknown to the stand-in: {path}"}, 404)

    def commit(self, name, body):
        hub = self.server
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                hub.messages.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                hub.files[name, value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                hub.files[name, value["path"]] = hub.objects[value["oid"]]
        oid = hashlib.sha1(body).hexdigest()
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{hub.url}/{name}/commit/{oid}"})

    do_POST = do_PUT = do_GET = answer


@pytest.fixture
def hub(monkeypatch):
    """The stand-in, which the client takes for the hub; its user is `me`."""
    with Hub() as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_ours")
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield server
        server.shutdown()


@pytest.fixture
def settings(tmp_path):
    return RunSettings(output_dir=str(tmp_path / "dancer"), max_train_steps=1, push_to_hub=True,
                       logging_dir=str(tmp_path / "logs"))  # fmt: skip


def one_process():
    return SimpleNamespace(is_main_process=True)


def test_a_run_pushes_its_final_model(hub, settings, capsys):
    assert toy_trainer.train(settings) == 0
    final = Path(settings.output_dir, "final")
    assert hub.repositories == {"me/dancer": "private"} and hub.messages == ["Model of training step 1"]
    assert hub.files == {
        ("me/dancer", path.relative_to(final).as_posix()): path.read_bytes() for path in final.rglob("*.*")
    }
    assert f"on the hub: {hub.url}/me/dancer/commit/" in capsys.readouterr().err


def test_card_and_weights_arrive_in_a_repository_that_is_there(hub, settings, tmp_path):
    settings.hub_model_id = "our-group/dancer"
    hub.repositories["our-group/dancer"] = "public"
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "README.md").write_text("---\nlicense: unknown\n---\n# 춤\n", encoding="utf-8")
    assert open_repository(settings, one_process()) == "our-group/dancer"
    push(tmp_path, "our-group/dancer", 7)
    assert hub.repositories == {"our-group/dancer": "public"}
    assert {path for _, path in hub.files} == {"unet/weights.safetensors", "README.md"}
    assert hub.files["our-group/dancer", "unet/weights.safetensors"] == bytes(range(256)) * 40


def test_who_may_not_write_is_told_before_the_training(hub, settings, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_another")
    with pytest.raises(
        ConfigError,
        match="--push_to_hub: no repository dancer: .*401.*password.*; log in with `hf auth login`",
    ):
        open_repository(settings, one_process())
    settings.hub_model_id = "not a name"
    with pytest.raises(ConfigError, match="no repository not a name: "):
        open_repository(settings, one_process())
    settings.push_to_hub = False
    assert open_repository(settings, one_process()) is None and hub.repositories == {}


def test_a_hub_that_fails_at_the_end_costs_no_model(hub, settings):
    hub.refuses = "/commit/"
    with pytest.raises(
        RunError, match=r"final is whole, but not on the hub: .*; push it with: hf upload me/"
    ):
        toy_trainer.train(settings)
    assert Path(settings.output_dir, "final", "line.safetensors").is_file()


def test_without_a_network_no_training_is_begun(hub, settings, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="--push_to_hub: no repository dancer: .*leave --push_to_hub out"):
        toy_trainer.train(settings)
    assert not list(Path(settings.output_dir).glob("checkpoint-*"))
