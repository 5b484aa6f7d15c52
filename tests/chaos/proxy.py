"""HTTP proxy before the S3 server, with faults that can be switched on."""

import random
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal
from urllib.parse import urlsplit

Mode = Literal["normal", "500", "503", "slow", "half", "down"]

SLOW_SECONDS = 1.5
"""Delay of each request in the mode `slow`."""
SHARE = 0.5
"""Share of the requests with an error or half a response, in those modes."""
_CODES = {"500": b"InternalError", "503": b"SlowDown"}
_TOO_LONG = 30.0


class Proxy(socketserver.ThreadingTCPServer):
    """Forwards one request per connection unchanged, so that its signature stays valid."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, target: str, seed: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        url = urlsplit(target)
        self.target = (url.hostname or "", url.port or 80)
        self.mode: Mode = "normal"
        self.slow_seconds, self.share = SLOW_SECONDS, SHARE
        self.disturbed = 0
        """Number of requests with a fault."""
        self._draws = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_mode(self) -> Mode:
        """Mode of the next request."""
        with self._lock:
            for_all = self.mode in ("normal", "slow", "down")
            mode = self.mode if for_all or self._draws.random() < self.share else "normal"
            self.disturbed += mode != "normal"
            return mode

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore broken connections, which are part of the faults."""


class _Passing(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        near: socket.socket = self.request
        near.settimeout(_TOO_LONG)
        mode = self.server.next_mode()
        if mode == "down":
            return
        head = _head(near)
        if not head:
            return
        if mode in _CODES:
            near.sendall(_refusal(mode))
            return
        if mode == "slow":
            time.sleep(self.server.slow_seconds)
        with socket.create_connection(self.server.target, timeout=_TOO_LONG) as far:
            far.sendall(_closing(head))
            up = threading.Thread(target=_copied, args=(near, far), daemon=True)
            up.start()
            if mode == "half":
                _half(far, near)
            else:
                _copied(far, near)


@contextmanager
def faulty_proxy(target: str, seed: int = 0) -> Iterator[Proxy]:
    """A running proxy before `target`, `http://host:port`; without faults until `mode` is set."""
    with Proxy(target, seed) as proxy:
        serving = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        serving.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            serving.join()


def _head(side: socket.socket) -> bytes:
    """Bytes received up to the end of the headers; empty if the client disconnected."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = side.recv(65536)
        if not more:
            return b""
        data += more
    return data


def _closing(head: bytes) -> bytes:
    """The request with `Connection: close`, so that each one has its own connection."""
    line, _, rest = head.partition(b"\r\n")
    return line + b"\r\nConnection: close\r\n" + rest


def _copied(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
    except OSError:
        return


def _half(far: socket.socket, near: socket.socket) -> None:
    """Forward the headers and half of the body, then close."""
    data = b""
    while more := far.recv(65536):
        data += more
    head, blank, body = data.partition(b"\r\n\r\n")
    near.sendall(head + blank + body[: len(body) // 2])


def _refusal(mode: Mode) -> bytes:
    body = b"<?xml version='1.0'?><Error><Code>" + _CODES[mode] + b"</Code></Error>"
    line = f"HTTP/1.1 {mode} Refused\r\n".encode()
    length = f"Content-Length: {len(body)}\r\n".encode()
    return (
        line + b"Content-Type: application/xml\r\nConnection: close\r\n" + length + b"\r\n" + body
    )
