"""One question to a server on loopback, past any proxy."""

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
        """The body as JSON; None when it is none."""
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
    """GET, or POST of a JSON document; None when nobody answers, an answer also for 4xx and 5xx.

    `credentials` are `user:password`.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = None if document is None else json.dumps(document).encode()
    try:
        headers = {"Content-Type": "application/json"}
        if credentials:
            headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        request = urllib.request.Request(url, body, headers, method=method)
        with direct.open(request, timeout=seconds) as answer:
            return HttpAnswer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return HttpAnswer(error.code, error.headers, b"")
    except (OSError, ValueError):
        return None


def is_well(url: str) -> bool:
    """Whether it answers 200."""
    answer = ask(url)
    return answer is not None and answer.status == 200
