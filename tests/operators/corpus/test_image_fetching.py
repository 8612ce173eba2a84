"""Images that rows name: whom a row can make this machine ask, with what, and whose fault it is when it goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from operators.corpus.image_fetching import ImageAccess, fetch, is_public
from operators.corpus.images import BadImage
from operators.errors import InputError
from operators.storage import StorageError, faults


class _Pictures(BaseHTTPRequestHandler):
    """Answers by the path; keeps the headers that it was asked with."""

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))  # type: ignore[attr-defined]
        kind, _, rest = self.path.lstrip("/").partition("/")
        if kind == "to":
            self.send_response(302)
            self.send_header("Location", rest if "://" in rest else f"/{rest}")
            self.end_headers()
        elif kind == "short":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"half")
        else:
            self.send_response(int(kind))
            self.end_headers()
            self.wfile.write(b"picture")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    """A web server on loopback."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    running.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def asked(server: ThreadingHTTPServer) -> list[tuple[str, dict[str, str]]]:
    found: list[tuple[str, dict[str, str]]] = server.asked  # type: ignore[attr-defined]
    return found


def picture(url: str, access: ImageAccess) -> bytes:
    return fetch({"bytes": None, "path": url}, access)


def reason(url: str, access: ImageAccess) -> str:
    with pytest.raises(BadImage) as caught:
        picture(url, access)
    return caught.value.reason


PRIVATE = ImageAccess(private_hosts=True)


def test_addresses_of_this_machine_are_asked_only_where_that_is_allowed(server: ThreadingHTTPServer) -> None:
    port = server.server_port
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"):
        assert reason(f"http://{host}:{port}/200", ImageAccess()) == "refused_image"
    assert asked(server) == [], "not even a connection"
    assert picture(f"http://127.0.0.1:{port}/200", PRIVATE) == b"picture"
    home = ImageAccess.of((f"http://127.0.0.1:{port}/rows.jsonl",), {}, False)
    assert picture(f"http://127.0.0.1:{port}/200", home) == b"picture", "the config named this host itself"
    other = f"http://localhost:{port}/200"
    assert reason(f"http://127.0.0.1:{port}/to/{other}", home) == "refused_image", "a redirect is judged anew"


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1", True),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
    ],
)
def test_what_a_public_address_is(address: str, public: bool) -> None:
    assert is_public(address) == public


def test_headers_of_the_source_go_to_its_own_host_alone(server: ThreadingHTTPServer) -> None:
    port = server.server_port
    options = {"headers": {"Authorization": "CANARY-1"}, "client_kwargs": {"headers": {"X-Key": "CANARY-2"}}}
    access = ImageAccess.of((f"http://127.0.0.1:{port}/rows",), options, private_hosts=True)
    assert picture(f"http://127.0.0.1:{port}/200/own", access) == b"picture"
    assert picture(f"http://localhost:{port}/200/other", access) == b"picture"
    assert picture(f"http://127.0.0.1:{port}/to/http://localhost:{port}/200/led", access) == b"picture"
    seen = {path: "CANARY" in str(headers) for path, headers in asked(server)}
    assert seen.pop("/200/own")
    assert not seen.pop("/200/other")
    assert not seen.pop("/200/led")


@pytest.mark.parametrize(
    "url", ["dir://x/y", "github://a:b@main/c.png", "ftp://h/x", "simplecache::s3://b/x", "sftp://h/x", "memory://x/y"]
)
def test_schemes_that_are_not_listed_are_refused(url: str) -> None:
    assert reason(url, ImageAccess()) == "refused_image"


def test_files_of_this_machine_are_not_for_a_source_that_is_elsewhere() -> None:
    access = ImageAccess.of(("s3://bucket/rows",), {}, False)
    assert reason("/etc/hostname", access) == "refused_image"
    assert reason("file:///etc/hostname", access) == "refused_image"


def test_whose_fault_it_is(server: ThreadingHTTPServer) -> None:
    base = f"http://127.0.0.1:{server.server_port}"
    for gone in ("404", "410"):
        assert reason(f"{base}/{gone}", PRIVATE) == "missing_image"
    assert reason(f"{base}/to/" + "to/" * 9 + "200", PRIVATE) == "missing_image"
    for refused in ("401", "403"):
        with pytest.raises(InputError, match=f"get access to .*{refused}"):
            picture(f"{base}/{refused}", PRIVATE)
    del asked(server)[:]
    for passing in ("/503", "/429", "/short"):
        with pytest.raises(StorageError, match="run again"):
            picture(base + passing, PRIVATE)
    assert len(asked(server)) == 18, "each was tried six times"
    with pytest.raises(StorageError, match="run again .* is not known"):
        picture("http://no-such-host.invalid/a.png", PRIVATE)


def test_names_of_other_scripts_are_quoted(server: ThreadingHTTPServer) -> None:
    assert picture(f"http://127.0.0.1:{server.server_port}/200/ä b.png?q=é", PRIVATE) == b"picture"
    assert asked(server)[0][0] == "/200/%C3%A4%20b.png?q=%C3%A9"
