"""HTTP requests to servers on loopback, without a proxy."""

import base64
import json
import urllib.error
import urllib.request
from email.message import Message
from typing import Any, NamedTuple

SECONDS = 5.0


class HttpAnswer(NamedTuple):
    status: int
    headers: Message
    body: bytes

    def document(self) -> Any:
        """The body as JSON; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


def ask(
    url: str,
    document: Any = None,
    seconds: float = SECONDS,
    *,
    method: str | None = None,
    credentials: str = "",
) -> HttpAnswer | None:
    """GET, or POST of a JSON document; None without a response. 4xx and 5xx are responses too.

    `credentials` are `user:password`.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = None if document is None else json.dumps(document).encode()
    try:
        headers = {"Content-Type": "application/json"}
        if credentials:
            headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        request = urllib.request.Request(url, body, headers, method=method)
        with direct.open(request, timeout=seconds) as response:
            return HttpAnswer(response.status, response.headers, response.read())
    except urllib.error.HTTPError as error:
        with error:
            return HttpAnswer(error.code, error.headers, b"")
    except (OSError, ValueError):
        return None


def is_healthy(url: str) -> bool:
    """Whether GET responds with 200."""
    answer = ask(url)
    return answer is not None and answer.status == 200
