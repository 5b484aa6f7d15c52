"""ASGI middleware that checks Host, Origin and login, for `uvicorn --factory`.

The application is named in the environment, so that this package imports no server of Prefect or MLflow.
"""

import base64
import hmac
import os
import pkgutil
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

APP = "DREAMBOOTH_ASGI_APP"
"""Environment variable: `module:name` of the application, or `module:name()` of a factory."""
LOGIN = "DREAMBOOTH_ASGI_LOGIN"
"""Environment variable: `user:password` required of every request; unset if the application has its own
login."""
HOSTS = {"127.0.0.1", "localhost"}
"""Allowed hosts in the Host header, with any port: SSH may forward another one."""
_POLICY = (b"content-security-policy", b"connect-src 'self' data: blob:")
HEALTH = "/health"
"""Path without login."""


def command(python: str, port: int) -> list[str]:
    """Command that serves the guarded application on 127.0.0.1.

    `prefect server start` and `mlflow server` cannot serve another application, and start 3 s slower.
    """
    factory = f"{__name__}:application"
    return [
        *(python, "-m", "uvicorn", "--factory", factory, "--host", "127.0.0.1"),
        *("--port", str(port), "--lifespan", "on", "--log-level", "warning"),
    ]


def application() -> "Guarded":
    """The guarded application, for uvicorn."""
    name = os.environ[APP]
    found = pkgutil.resolve_name(name.removesuffix("()"))
    return Guarded(found() if name.endswith("()") else found, os.environ.get(LOGIN, ""))


class Guarded:
    """Responds 403 to foreign Host and Origin headers, and 401 without the login.

    Host and Origin are checked against DNS rebinding and cross-site requests, to which a browser adds
    the stored login.
    """

    def __init__(self, app: "ASGIApp", login: str) -> None:
        self._app = app
        self._login = login.encode()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        refusal = self._refusal(scope)
        if not refusal:
            await self._app(scope, receive, _with_policy(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain")]
            if refusal == 401:
                headers.append((b"www-authenticate", b'Basic realm="dreambooth"'))
            await send({"type": "http.response.start", "status": refusal, "headers": headers})
            await send({"type": "http.response.body", "body": b"refused\n"})

    def _refusal(self, scope: "Scope") -> int:
        """HTTP status of the refusal; 0 for an accepted request."""
        if scope["type"] not in ("http", "websocket"):
            return 0
        headers = _single(scope["headers"])
        host, origin = headers.get(b"host", b""), headers.get(b"origin")
        if host.decode("latin-1").rpartition(":")[0] not in HOSTS:
            return 403
        if origin is not None and origin != b"http://" + host:
            return 403
        if not self._login or (scope["type"] == "http" and scope["path"] == HEALTH):
            return 0
        return 0 if self._is_login(headers.get(b"authorization", b"")) else 401

    def _is_login(self, authorization: bytes) -> bool:
        expected = b"Basic " + base64.b64encode(self._login)
        return hmac.compare_digest(authorization, expected)


def _with_policy(send: "Send") -> "Send":
    """Add a Content-Security-Policy that forbids requests to other servers.

    Prefect's login page sends analytics before it can read that they are disabled.
    """

    async def with_policy(message: "Message") -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), _POLICY]}
        await send(message)

    return with_policy


def _single(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """Headers by lower-case name; duplicates are joined, so that no check accepts them."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found[name] = found[name] + b", " + value if name in found else value
    return found
