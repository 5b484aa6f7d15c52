"""A way to the S3 server that misbehaves on order."""

import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from urllib.parse import urlsplit

Way = Literal["well", "500", "503", "slow", "half", "down"]

SLOW_SECONDS = 1.5
"""That each request waits when the way is slow."""
SHARE = 0.5
"""Of the requests that are met with an error or half an answer: the others pass, as in life."""
_CODES = {"500": b"InternalError", "503": b"SlowDown"}
_TOO_LONG = 30.0


class Proxy(socketserver.ThreadingTCPServer):
    """Passes one request per connection on, as it is: signatures hold for what the client named."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, target: str, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        place = urlsplit(target)
        self.target = (place.hostname or "", place.port or 80)
        self.way: Way = "well"
        self.slow_seconds, self.share = SLOW_SECONDS, SHARE
        self.hurt = 0
        """Requests that were not answered as they should have been."""
        self._draws = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def chosen(self) -> Way:
        """What the next request is to meet."""
        with self._lock:
            all_alike = self.way in ("well", "slow", "down")
            way = self.way if all_alike or self._draws.random() < self.share else "well"
            self.hurt += way != "well"
            return way

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever is cut off here is cut off on purpose, or was killed."""


class _Passing(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        near: socket.socket = self.request
        near.settimeout(_TOO_LONG)
        way = self.server.chosen()
        if way == "down":
            return
        head = _head(near)
        if not head:
            return
        if way in _CODES:
            near.sendall(_refusal(way))
            return
        if way == "slow":
            time.sleep(self.server.slow_seconds)
        with socket.create_connection(self.server.target, timeout=_TOO_LONG) as far:
            far.sendall(_closing(head))
            up = threading.Thread(target=_copied, args=(near, far), daemon=True)
            up.start()
            if way == "half":
                _half(far, near)
            else:
                _copied(far, near)


@contextmanager
def misbehaving(target: str, seed: int = 0) -> Iterator[Proxy]:
    """A proxy before `target`, an `http://host:port`; it behaves until its `way` is changed."""
    with Proxy(target, seed) as proxy:
        serving = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        serving.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            serving.join()


def _head(side: socket.socket) -> bytes:
    """What has come up to the end of the headers; empty when the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = side.recv(65536)
        if not more:
            return b""
        data += more
    return data


def _closing(head: bytes) -> bytes:
    """The request, asking for the end of the connection, so that each one has one of its own."""
    line, _, rest = head.partition(b"\r\n")
    return line + b"\r\nConnection: close\r\n" + rest


def _copied(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        return


def _half(far: socket.socket, near: socket.socket) -> None:
    """The headers and half of the body they promise, then nothing more."""
    data = b""
    while more := far.recv(65536):
        data += more
    head, blank, body = data.partition(b"\r\n\r\n")
    near.sendall(head + blank + body[: len(body) // 2])


def _refusal(way: Way) -> bytes:
    body = b"<?xml version='1.0'?><Error><Code>" + _CODES[way] + b"</Code></Error>"
    line = f"HTTP/1.1 {way} Refused\r\n".encode()
    length = f"Content-Length: {len(body)}\r\n".encode()
    return (
        line + b"Content-Type: application/xml\r\nConnection: close\r\n" + length + b"\r\n" + body
    )
