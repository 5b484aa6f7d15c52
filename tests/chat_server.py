"""An HTTP server with OpenAI's chat interface and configurable responses and faults."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Request = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """Response to one request."""

    content: str | None = ""
    """The message's content."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    """Body instead of a chat completion."""
    wait: threading.Event | None = None
    """Event to wait for before responding."""
    hang_up: bool = False
    """Close the connection without a response."""
    message: Request = field(default_factory=dict)
    """Further fields of the message: `reasoning_content`, `refusal`."""
    choice: Request = field(default_factory=dict)
    """Further fields of the choice: `finish_reason`, `logprobs`."""
    usage: tuple[int, int] | None = None
    """Tokens of the prompt and of the answer."""
    cut_after: int | None = None
    """Bytes of the body after which the connection is closed."""
    pause: float = 0.0
    """Seconds between two pieces of 16 bytes; the body is sent at once when 0."""


@dataclass
class ChatServer:
    """URL and received requests."""

    url: str
    requests: list[Request] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that close the connection, as some tests do."""


def _chat(reply: Reply) -> Request:
    """A chat completion as OpenAI's reference describes it."""
    message = {"role": "assistant", "content": reply.content, **reply.message}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **reply.choice}
    chat: Request = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    chat["choices"] = [choice]
    if reply.usage is not None:
        given, written = reply.usage
        total = given + written
        counts = {"prompt_tokens": given, "completion_tokens": written, "total_tokens": total}
        chat["usage"] = counts
    return chat


@contextmanager
def serving(answer: Callable[[int, Request], Reply]) -> Iterator[ChatServer]:
    """Serve on loopback; `answer` gets the request's number, from 0, and its JSON."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.requests)
                server.requests.append(document)
                server.keys.append(self.headers.get("Authorization", ""))
                server.paths.append(self.path)
            reply = answer(number, document)
            if reply.wait is not None:
                reply.wait.wait(30)
            if reply.hang_up:
                self.close_connection = True
                return
            self._send(reply)

        def _send(self, reply: Reply) -> None:
            body = (json.dumps(_chat(reply)) if reply.body is None else reply.body).encode()
            self.send_response(reply.status)
            for name, value in {**reply.headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            step = 16 if reply.pause else max(1, len(body))
            sent = body[: reply.cut_after]
            for start in range(0, len(sent), step):
                self.wfile.write(sent[start : start + step])
                self.wfile.flush()
                time.sleep(reply.pause)
            self.close_connection = len(sent) < len(body)

        def log_message(self, *_: Any) -> None:
            """No output."""

    http = Quiet(("127.0.0.1", 0), Handler)
    server = ChatServer(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def scripted(*replies: Reply) -> AbstractContextManager[ChatServer]:
    """Serve the replies in order, then the last one again and again."""
    return serving(lambda number, _: replies[min(number, len(replies) - 1)])
