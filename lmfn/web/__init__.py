"""The page that sharpens photographs in a browser, and the server of its files: `lmfn web`.

Photographs stay in the browser. The server only serves files; it listens on 127.0.0.1 only.
"""

import base64
import json
import logging
import sys
import tempfile
import threading
import webbrowser
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path, PurePath
from typing import Any

from lmfn.extras import require
from lmfn.web.runtime import runtime_files

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
}
HEADERS = {
    # WebAssembly threads need a page that is isolated from other origins.
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Nothing may be loaded from or sent to other origins, so that photographs cannot leave the page.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
        "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # No caching: after an update, page and network must have the same version.
    "Cache-Control": "no-store",
}
SELF_TEST_SIZE = 80, 464
"""Height and width of the self-test image; wide enough for several attention windows."""


def page_files(weights: str | Path) -> dict[str, bytes]:
    """All files of the page by URL path: the page itself, ONNX Runtime, the network of these weights as ONNX, and a
    small image with PyTorch's result, against which the page checks its own.

    Raises ValueError if the package onnx is missing, and as `LMFN.from_pretrained` and `runtime_files`.
    """
    require("onnx", "lmfn web", "export")
    folder = resources.files(__name__) / "page"
    files = {f"/{file.name}": file.read_bytes() for file in folder.iterdir()}
    files["/"] = files.pop("/index.html")
    files["/network.onnx"], files["/self-test.json"] = _network(weights)
    files |= {f"/runtime/{name}": data for name, data in runtime_files().items()}
    return files


def _network(weights: str | Path) -> tuple[bytes, bytes]:
    import numpy as np

    from lmfn.deblur import Deblurrer
    from lmfn.export import export_onnx

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "network.onnx")
        export_onnx(weights, file)
        network = file.read_bytes()
    # Noise in patches of 8 pixels: edges of all contrasts, and flat parts.
    height, width = SELF_TEST_SIZE
    patches = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    blurred = patches.repeat(8, axis=0).repeat(8, axis=1)
    sharp = Deblurrer(weights, device="cpu", guard="off")(blurred.astype(np.float32) / 255)
    check = {"height": height, "width": width, "blurred": _text(blurred.tobytes()), "sharp": _text(sharp.tobytes())}
    return network, json.dumps(check).encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # A page that is closed, or cancels, while it loads, is no error.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def server(files: dict[str, bytes], port: int = 0) -> ThreadingHTTPServer:
    """A server of these files on 127.0.0.1 at this port, or any free port for 0; `serve_forever` runs it.

    Other paths are not found, whatever is on disk. Raises OSError for a port in use.
    """

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version, protocol_version = "lmfn", "", "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            found = files.get(path)
            status = HTTPStatus.OK if found is not None else HTTPStatus.NOT_FOUND
            body = found if found is not None else b"not found\n"
            self.send_response(status)
            kind = TYPES[PurePath(path).suffix or ".html"] if found is not None else "text/plain; charset=utf-8"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 (the name that http.server looks for)

        def log_message(self, *_: object) -> None:
            pass

    try:
        return Server((ADDRESS, port), Handler)
    except OSError as error:
        raise OSError(f"port {port} cannot be had ({error.strerror}); name another, or 0 for any free one") from error


def serve(weights: str | Path = "lmfn", port: int = 8650, open_browser: bool = True) -> None:
    """Create the page's files, open the page in the user's browser, and serve it until interrupted.

    Raises as `page_files` and `server`.
    """
    files: dict[str, bytes] = {}
    with server(files, port) as running:  # first, so that a port in use is found out before the work
        files.update(page_files(weights))
        url = f"http://{ADDRESS}:{running.server_port}/"
        log.info("The page is at %s (Ctrl+C stops it). Photographs stay in the browser.", url)
        if open_browser:  # in a thread, as some browsers return only when they are closed
            threading.Thread(target=_open_browser, args=(url,), daemon=True).start()
        with suppress(KeyboardInterrupt):
            running.serve_forever()


def _open_browser(url: str) -> None:
    if not webbrowser.open(url):
        log.info("No browser could be opened; open that address in one.")
