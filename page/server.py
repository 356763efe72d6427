"""The server of the page: nothing is told to anybody outside, and the browser asks nothing outside."""

import contextlib
import errno
import os
import socket
import sys
import time

from system.errors import ConfigError

INSTALL = "pip install -r requirements-app.txt"
LOOPBACK, LAST_PORT = "127.0.0.1", 65_535
# What Gradio's own page needs, and no other address: fonts, scripts, pictures, videos, requests.
POLICY = "; ".join(
    (
        "default-src 'self'", "script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'", "img-src 'self' data: blob:", "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:", "worker-src 'self' blob:", "object-src 'none'", "base-uri 'self'",
        "form-action 'self'", "frame-ancestors 'none'",
    )
)  # fmt: skip
HEADERS = {
    "content-security-policy": POLICY, "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"
}  # fmt: skip


def check_gradio() -> None:
    """Raise ConfigError where Gradio is not installed; tell it that nothing is reported to anybody."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    os.environ.setdefault("GRADIO_HEARTBEAT_INTERVAL", "5")  # seconds in which a closed tab is noticed
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the page needs Gradio ({error}): {INSTALL}") from None


def keep_files_in(folder: str) -> None:
    """Let Gradio put uploads and results there and nowhere else."""
    os.environ["GRADIO_TEMP_DIR"] = folder


def check_address(host: str, port: int) -> None:
    """Raise ConfigError where the page cannot be served at an address."""
    if port > LAST_PORT:
        raise ConfigError(f"--port {port}: there are {LAST_PORT} ports")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if os.name != "nt":  # there it would let two servers have one port
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"--host {host}: is no address of this machine ({error.strerror})") from None
        raise _no_port(host, port, error.strerror) from None


def _no_port(host: str, port: int, reason: object) -> ConfigError:
    return ConfigError(f"--port {port}: cannot be had on {host} ({reason}); choose another --port")


class OwnAddressOnly:
    """ASGI middleware that lets the browser ask this server alone."""

    def __init__(self, app) -> None:
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        async def send_with_headers(message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = message | {"headers": [*message.get("headers", ()), *extra]}
            await send(message)

        await self.app(scope, receive, send_with_headers if scope["type"] == "http" else send)


def serve(blocks, address: tuple[str, int], max_bytes: int, look: dict) -> None:
    """Serve a page until the process is stopped. look: its theme, CSS and translations.

    Raises ConfigError where the port is taken meanwhile.
    """
    from starlette.middleware import Middleware

    host, port = address
    try:
        with contextlib.redirect_stdout(sys.stderr):
            blocks.launch(
                server_name=host, server_port=port, share=False, inbrowser=False, quiet=True,
                prevent_thread_lock=True, max_file_size=max_bytes, show_error=False,
                footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
                mcp_server=False, app_kwargs={"middleware": [Middleware(OwnAddressOnly)]}, **look,
            )  # fmt: skip
    except OSError as error:
        raise _no_port(host, port, error) from None
    print(f"The page: {blocks.local_url} (Ctrl-C ends it)", flush=True)
    if host not in (LOOPBACK, "localhost", "::1"):
        print("note: whoever reaches this machine can use the page: there is no password")
    try:
        while blocks.is_running:  # block_thread swallows Ctrl-C
            time.sleep(0.2)
    finally:
        blocks.close(verbose=False)
