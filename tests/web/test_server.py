"""The files that `lmfn web` serves, without a browser."""

import base64
import hashlib
import http.client
import io
import json
import re
import socket
import tarfile
import threading
import urllib.request
import webbrowser
from collections.abc import Iterator
from functools import cache
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lmfn import LMFN, cli, web
from lmfn.web import runtime

PAGE = Path(web.__file__).parent / "page"


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    files = {f"/file{suffix}": suffix.encode() for suffix in web.TYPES} | {"/": b"<!doctype html>"}
    with web.server(files) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server: ThreadingHTTPServer, path: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path)
    response = connection.getresponse()
    found = response.status, dict(response.getheaders()), response.read()
    connection.close()
    return found


def test_it_listens_on_this_computer_alone(server: ThreadingHTTPServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("suffix", web.TYPES)
def test_files_have_their_types(server: ThreadingHTTPServer, suffix: str) -> None:
    status, headers, body = ask(server, f"/file{suffix}?again")
    assert (status, headers["Content-Type"], body) == (200, web.TYPES[suffix], suffix.encode())


def test_head_is_get_without_the_body(server: ThreadingHTTPServer) -> None:
    status, headers, body = ask(server, "/", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "15", b"")


@pytest.mark.parametrize("path", ["/", "/nothing"])
def test_every_answer_allows_threads_and_forbids_other_origins(server: ThreadingHTTPServer, path: str) -> None:
    _, headers, _ = ask(server, path)
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'"
    sources = {source for rule in policy.values() for source in rule.split()}
    assert sources == {"'none'", "'self'", "'wasm-unsafe-eval'"}


@pytest.mark.parametrize(
    "path",
    [
        "/../pyproject.toml",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/etc/passwd",
        "/file.js/",
        "/page/",
        "/index.html",
    ],
)
def test_what_is_not_of_the_page_is_not_found(server: ThreadingHTTPServer, path: str) -> None:
    assert ask(server, path)[0] == 404


def test_nothing_can_be_sent_to_it(server: ThreadingHTTPServer) -> None:
    assert ask(server, "/", "POST")[0] == 501


def test_a_port_that_is_taken_is_named(server: ThreadingHTTPServer) -> None:
    with pytest.raises(OSError, match=f"port {server.server_port} cannot be had"):
        web.server({}, server.server_port)


def test_a_port_that_is_taken_is_found_out_before_the_work(
    server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(web, "page_files")
    with pytest.raises(OSError, match=f"port {server.server_port} cannot be had"):
        web.serve("lmfn", server.server_port, open_browser=False)


def test_a_page_that_is_closed_while_it_loads_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with web.server({"/": bytes(1 << 25)}) as running:
        running.daemon_threads = False  # the end of the context waits for its answers
        threading.Thread(target=running.serve_forever).start()
        with socket.create_connection(running.server_address) as page:
            page.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert page.recv(1)
        running.shutdown()
    assert capsys.readouterr().err == ""


def test_a_browser_that_returns_when_it_is_closed_gets_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the one of `BROWSER="chromium --incognito %s"`."""
    make, made, seen = web.server, list[ThreadingHTTPServer](), list[bytes]()

    def server(files: dict[str, bytes], port: int) -> ThreadingHTTPServer:
        made.append(make(files, port))
        return made[0]

    def browse(url: str) -> bool:
        seen.append(urllib.request.urlopen(url, timeout=5).read())
        made[0].shutdown()
        return True

    monkeypatch.setattr(web, "page_files", lambda _: {"/": b"the page"})
    monkeypatch.setattr(web, "server", server)
    monkeypatch.setattr(webbrowser, "open", browse)
    web.serve("lmfn", 0)
    assert seen == [b"the page"]


@cache  # gzip stores the time
def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in runtime.FILES:
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    return buffer.getvalue()


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes | Exception]:
    """The npm registry, with its responses in order, and an empty cache."""
    published, answers = archive(), list[bytes | Exception]()
    integrity = "sha512-" + base64.b64encode(hashlib.sha512(published).digest()).decode()

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        assert url == runtime.URL
        assert timeout > 0
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return io.BytesIO(answer)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(runtime, "INTEGRITY", integrity)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    answers.append(published)
    return answers


def test_the_runtime_is_downloaded_once(registry: list[bytes | Exception]) -> None:
    expected = {name: name.encode() for name in runtime.FILES}
    assert runtime.runtime_files() == expected
    assert not registry
    assert runtime.runtime_files() == expected  # a second download would get no response


def test_another_archive_is_refused_and_not_kept(registry: list[bytes | Exception]) -> None:
    registry[:] = [b"something else"]
    with pytest.raises(ValueError, match=r"is not onnxruntime-web .* as it was published"):
        runtime.runtime_files()
    assert not runtime.cache_folder().exists()


@pytest.mark.usefixtures("registry")
def test_a_damaged_archive_in_the_cache_is_named() -> None:
    runtime.runtime_files()
    file = next(runtime.cache_folder().iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} is damaged; remove it"):
        runtime.runtime_files()


@pytest.mark.parametrize("error", [OSError("no route to host"), http.client.IncompleteRead(b"a part")])
def test_without_a_network_the_remedy_is_told(registry: list[bytes | Exception], error: Exception) -> None:
    registry[:] = [error]
    with pytest.raises(OSError, match=re.escape(str(error))) as caught:
        runtime.runtime_files()
    assert runtime.URL in str(caught.value)
    assert str(runtime.cache_folder()) in str(caught.value)
    runtime.cache_folder().mkdir(parents=True)
    (runtime.cache_folder() / Path(runtime.URL).name).write_bytes(archive())  # as that message says
    assert runtime.runtime_files().keys() == set(runtime.FILES)


@pytest.mark.usefixtures("registry")
def test_the_page_is_whole_and_its_self_test_is_true(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1).save_pretrained(tmp_path / "weights")
    files = web.page_files(str(tmp_path / "weights"))

    assert all(Path(path).suffix in web.TYPES for path in files if path != "/")
    for path, data in files.items():
        if Path(path).parent == Path("/") and Path(path).suffix in ("", ".js"):
            named = re.findall(r'(?:from|import\(|src=|href=|URL\(|get\()\s*"([\w./-]+\.\w+)"', data.decode())
            missing = [name for name in named if f"/{name.removeprefix('./')}" not in files]
            assert not missing, (path, missing)

    test = json.loads(files["/self-test.json"])
    shape = test["height"], test["width"], 3
    blurred = np.frombuffer(base64.b64decode(test["blurred"]), np.uint8).reshape(shape).astype(np.float32) / 255
    sharp = np.frombuffer(base64.b64decode(test["sharp"]), np.float32).reshape(shape)
    session = onnxruntime.InferenceSession(files["/network.onnx"], providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"blurred": blurred.transpose(2, 0, 1)[None]})
    np.testing.assert_allclose(found[0].transpose(1, 2, 0).clip(0, 1), sharp, atol=1e-4)
    assert np.abs(sharp - blurred).max() > 1e-3  # a network that does nothing would test nothing


def test_the_page_names_no_other_origin() -> None:
    texts = {file.name: file.read_text(encoding="utf-8") for file in PAGE.iterdir()}
    found = {(name, url) for name, text in texts.items() for url in re.findall(r"https?://[^\s\"'<>]+", text)}
    assert {url for _, url in found} == {
        "http://ns.adobe.com/xap/1.0/\\0",
        "http://www.w3.org/2000/svg",
    }  # names without directories


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ("lmfn", 8650, True)),
        (["--port", "0", "--no-open", "-w", "mine"], ("mine", 0, False)),
    ],
)
def test_the_command_line(
    arguments: list[str], expected: tuple[str, int, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(web, "serve", lambda *call: calls.append(call))
    assert cli.main(["web", *arguments]) == 0
    assert calls == [expected]
