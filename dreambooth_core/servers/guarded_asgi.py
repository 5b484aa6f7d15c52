"""An ASGI application on loopback behind checks of Host, Origin and login, for `uvicorn --factory`.

The environment names the application, so that the core imports none of Prefect's or MLflow's server.
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
"""Variable of the environment: `module:name` of the application, with `()` behind a factory's name."""
LOGIN = "DREAMBOOTH_ASGI_LOGIN"
"""Variable of the environment: `user:password` that every request must have; unset for an application
that asks for its own."""
HOSTS = {"127.0.0.1", "localhost"}
"""Names in the Host header, whatever the port: SSH may forward another one."""
_POLICY = (b"content-security-policy", b"connect-src 'self' data: blob:")
HEALTH = "/health"
"""Path that needs no login."""


def command(python: str, port: int) -> list[str]:
    """Serve what the environment names on 127.0.0.1.

    Not by `prefect server start` or `mlflow server`, which take no other application, and 3 s longer.
    """
    factory = f"{__name__}:application"
    return [
        *(python, "-m", "uvicorn", "--factory", factory, "--host", "127.0.0.1"),
        *("--port", str(port), "--lifespan", "on", "--log-level", "warning"),
    ]


def application() -> "Guarded":
    """The application of the environment, guarded."""
    name = os.environ[APP]
    found = pkgutil.resolve_name(name.removesuffix("()"))
    return Guarded(found() if name.endswith("()") else found, os.environ.get(LOGIN, ""))


class Guarded:
    """Answers 403 to a foreign Host and to pages of another origin, 401 without the login.

    A page of another site may have its own name resolved to 127.0.0.1, and a browser adds a login
    that it has once been given to requests of any page: hence Host and Origin are checked as well.
    """

    def __init__(self, app: "ASGIApp", login: str) -> None:
        self._app = app
        self._login = login.encode()

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        refusal = self._refusal(scope)
        if not refusal:
            await self._app(scope, receive, _only_asking_itself(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"text/plain")]
            if refusal == 401:
                headers.append((b"www-authenticate", b'Basic realm="dreambooth"'))
            await send({"type": "http.response.start", "status": refusal, "headers": headers})
            await send({"type": "http.response.body", "body": b"refused\n"})

    def _refusal(self, scope: "Scope") -> int:
        """The status to refuse a request with; 0 for one that is let in."""
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
        return 0 if self._knows(headers.get(b"authorization", b"")) else 401

    def _knows(self, authorization: bytes) -> bool:
        expected = b"Basic " + base64.b64encode(self._login)
        return hmac.compare_digest(authorization, expected)


def _only_asking_itself(send: "Send") -> "Send":
    """Add the policy that keeps a page from asking other servers.

    Prefect's login page reports to its makers: it cannot read yet that this is switched off.
    """

    async def with_policy(message: "Message") -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), _POLICY]}
        await send(message)

    return with_policy


def _single(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """Headers by their lower-case name; values of one that comes twice are joined, and match nothing."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found[name] = found[name] + b", " + value if name in found else value
    return found
