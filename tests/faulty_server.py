"""A server on loopback that gives one wrong response to all requests, for clients of S3 and MLflow."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager

HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><p>Hello<br></body></html>"
XHTML = b"<html><head><title>Sign in</title></head><body><p>Hello</p></body></html>"


def _error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>m</Message></Error>'.encode()


RESPONSES = {
    "slow_down": ("503 Slow Down", _error("SlowDown"), ""),
    "html": ("200 OK", HTML, ""),
    "xhtml": ("200 OK", XHTML, ""),
    "junk_xml": ("200 OK", b"<ListBucketResult><Contents><Key>a", ""),
    "loop": ("301 Moved Permanently", HTML, "Location: {url}/elsewhere\r\n"),
    "forbidden": ("403 Forbidden", _error("AccessDenied"), ""),
    "no_bucket": ("404 Not Found", _error("NoSuchBucket"), ""),
    "not_found": ("404 Not Found", HTML, ""),
    "unauthorized": ("401 Unauthorized", HTML, 'WWW-Authenticate: Basic realm="m"\r\n'),
    "region": ("400 Bad Request", _error("AuthorizationHeaderMalformed"), ""),
    "broken": ("500 Internal Server Error", HTML, ""),
}
"""Fault -> status line, body, more headers; besides "hangs", which never responds, and "garbage"."""


class Faulty(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, way: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.way = way
        self.asked = 0
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore closed connections."""


class _Handler(socketserver.StreamRequestHandler):
    server: Faulty

    def handle(self) -> None:
        if self.server.way == "garbage":
            self.wfile.write(b"\x00\x01no http here\r\n\r\n")
            return
        first = self.rfile.readline()
        length, line = 0, b"-"
        while line.strip():
            line = self.rfile.readline()
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
            if line.lower().startswith(b"expect:"):
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.rfile.read(length)
        self.server.asked += 1
        if self.server.way == "hangs":
            self.server.over.wait()
            return
        status, body, more = RESPONSES[self.server.way]
        more = more.format(url=self.server.url)
        head = (
            f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.wfile.write(head.encode() + (b"" if first.startswith(b"HEAD") else body))


@contextmanager
def faulty(way: str) -> Iterator[Faulty]:
    with Faulty(way) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
