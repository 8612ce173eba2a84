"""A reverse proxy on 127.0.0.1 that does to S3 clients what networks and busy storages do, at a given rate.

Each request gets a connection of its own to the storage and an answer that ends with the connection, which keeps the
proxy free of HTTP framing. All headers pass unchanged, above all Host, since the client's signature covers it.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["error_500", "slow_down", "forbidden", "hang", "reset", "cut_body", "short_body", "lost_answer"]

# error_500, slow_down  the storage says so, without having done anything      (forbidden likewise: a wrong signature)
# hang                  no answer until the client's patience is over; not done
# reset                 the connection breaks before the storage hears of it
# cut_body, short_body  done, but the answer breaks off in its middle, by a reset or by an early end
# lost_answer           done, but the connection breaks before the answer: the client cannot know
PASSING: tuple[Fault, ...] = ("error_500", "slow_down", "hang", "reset", "cut_body", "short_body", "lost_answer")
_ANSWERS: dict[str, tuple[str, str]] = {
    "error_500": ("500 Internal Server Error", "InternalError"),
    "slow_down": ("503 Slow Down", "SlowDown"),
    "forbidden": ("403 Forbidden", "SignatureDoesNotMatch"),
}


class FaultProxy:
    """Listens from `start()` to `stop()`; what it does may be changed while it runs.

    `rate` is the share of requests that go wrong, `methods` the HTTP methods that may (all, where it is empty), `limit`
    how many go wrong at most. `counts` tells what was done, by fault, and how many requests "passed".
    """

    def __init__(self, target_url: str, rate: float = 0.0, seed: int = 0, faults: tuple[Fault, ...] = PASSING) -> None:
        target = urlsplit(target_url)
        assert target.hostname is not None
        assert target.port is not None
        self._target = (target.hostname, target.port)
        self.rate, self.faults = rate, faults
        self.methods: frozenset[str] = frozenset()
        self.hang_seconds = 30.0
        self.limit: int | None = None  # no more faults than these
        self.counts: Counter[str] = Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)

    @property
    def url(self) -> str:
        """What clients take for the storage's endpoint."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def num_faults(self) -> int:
        """Requests that went wrong so far."""
        return sum(count for name, count in self.counts.items() if name != "passed")

    def start(self) -> FaultProxy:
        """Begin to listen."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening and let go of clients that hang."""
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # Clients give up and storages are killed in the midst of things: that is what this is for.
        with client, contextlib.suppress(OSError):
            request = _read_request(client)
            if request is None:
                return
            method = request.split(b" ", 1)[0].decode()
            fault = self._draw(method)
            if fault in _ANSWERS:
                client.sendall(_error_answer(*_ANSWERS[fault], has_body=method != "HEAD"))
                client.shutdown(socket.SHUT_WR)
            elif fault == "hang":
                self._stopped.wait(self.hang_seconds)
            elif fault == "reset":
                _reset(client)
            else:
                self._forward(client, request, fault)

    def _draw(self, method: str) -> str:
        with self._lock:
            may = (not self.methods or method in self.methods) and (self.limit is None or self.num_faults < self.limit)
            fault = self._random.choice(self.faults) if may and self._random.random() < self.rate else "passed"
            self.counts[fault] += 1
            return fault

    def _forward(self, client: socket.socket, request: bytes, fault: str) -> None:
        with socket.create_connection(self._target) as storage:
            storage.sendall(request)
            if fault == "passed":
                for piece in _pieces(storage):
                    client.sendall(piece)
                client.shutdown(socket.SHUT_WR)
                return
            answer = b"".join(_pieces(storage))
        if fault != "lost_answer":
            head, _, body = answer.partition(b"\r\n\r\n")
            client.sendall(head + b"\r\n\r\n" + body[: len(body) // 2] if body else head[: len(head) // 2])
            time.sleep(0.01)  # a reset would overtake what was sent
        if fault == "short_body":
            client.shutdown(socket.SHUT_WR)
        else:
            _reset(client)


def _read_request(client: socket.socket) -> bytes | None:
    """Head and body of one request, asking the storage to close after it; None where the client sends none."""
    received = b""
    while b"\r\n\r\n" not in received:
        piece = client.recv(1 << 16)
        if not piece:
            return None
        received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    assert b"transfer-encoding" not in headers, "S3 clients say how long a body is"
    if headers.get(b"expect", b"").lower() == b"100-continue":
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = int(headers.get(b"content-length", b"0"))
    pieces, missing = [body], length - len(body)
    while missing > 0:
        pieces.append(client.recv(min(missing, 1 << 20)))
        if not pieces[-1]:
            return None
        missing -= len(pieces[-1])
    kept = [line for line in lines if line.partition(b":")[0].lower() not in (b"connection", b"expect")]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""]) + b"".join(pieces)


def _pieces(connection: socket.socket) -> Iterator[bytes]:
    while piece := connection.recv(1 << 20):
        yield piece


def _error_answer(status: str, code: str, has_body: bool) -> bytes:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>made up</Message></Error>'
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\nConnection: close"
    return f"{head}\r\n\r\n{body if has_body else ''}".encode()


def _reset(client: socket.socket) -> None:
    """Close with a RST instead of a FIN."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
