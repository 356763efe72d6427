"""A server on loopback that speaks S3, and a proxy before it that answers late, wrongly or not to the end."""

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BUCKET = "bucket"
HOP_BY_HOP = {"transfer-encoding", "connection", "content-length", "server", "date"}


class Proxy(ThreadingHTTPServer):
    """Hands requests on to a server; `faults` are what befalls the next requests for shards, one each.

    "slow": 0.3 s late; "error": 500; "cut": half of the answer; `is_gone`: every request ends in nothing.
    `delay`: seconds until an answer begins; `bytes_per_second`: of each answer.
    """

    daemon_threads = True

    def __init__(self, server: tuple[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.server, self.faults, self.is_gone, self.fetched = server, [], False, []
        self.delay, self.bytes_per_second = 0.0, float("inf")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def handle_one(self) -> None:
        proxy = self.server
        if proxy.is_gone:
            return self.hang_up()
        fault = None
        if self.command == "GET" and ".tar" in self.path:
            proxy.fetched.append(self.path.rsplit("/", 1)[-1].partition("?")[0])
            fault = proxy.faults.pop(0) if proxy.faults else None
        if fault == "slow":
            time.sleep(0.3)
        if fault == "error":
            return self.answer(500, {}, b"")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(*proxy.server)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            time.sleep(proxy.delay + len(content) / proxy.bytes_per_second)
            self.answer(answer.status, dict(answer.getheaders()), content, is_cut=fault == "cut")

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_one

    def answer(self, status: int, headers: dict, content: bytes, *, is_cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers.items()}.get("content-length")
        self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if is_cut else content)
        if is_cut:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)


@contextlib.contextmanager
def s3_server() -> Iterator[Proxy]:
    """Yield the proxy before a running server with an empty bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    proxy = Proxy((host, port))
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    request((host, port), "PUT", f"/{BUCKET}")
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def upload(proxy: Proxy, folder: Path, name: str) -> str:
    """Put a folder's files into the bucket; return its address."""
    for path in folder.iterdir():
        if path.is_file():
            request(proxy.server, "PUT", f"/{BUCKET}/{name}/{path.name}", path.read_bytes())
    return f"s3://{BUCKET}/{name}"


def request(server: tuple[str, int], method: str, path: str, body: bytes = b"") -> bytes:
    with contextlib.closing(http.client.HTTPConnection(*server)) as connection:
        connection.request(
            method, path, body, {"Authorization": "AWS4-HMAC-SHA256 Credential=a/b/us-east-1/s3/c"}
        )
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status < 300, content
        return content
