"""Which requests reach a guarded application, and the statuses of refusals."""

import base64
import sys
from collections.abc import Mapping

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from dreambooth_core.servers import guarded_asgi

LOGIN = "dreambooth:secret"
OWN_HOST = {"Host": "127.0.0.1:14200"}
AUTH = {"Authorization": f"Basic {base64.b64encode(LOGIN.encode()).decode()}"}


async def index(_: object) -> PlainTextResponse:
    return PlainTextResponse("inside")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("inside")
    await socket.close()


def build() -> Starlette:
    routes = [Route("/", index, methods=["GET", "POST"]), Route("/health", index)]
    return Starlette(routes=[*routes, WebSocketRoute("/talk", talk)])


def client(monkeypatch: pytest.MonkeyPatch, login: str) -> TestClient:
    """A client of this module's application, named in the environment."""
    monkeypatch.setitem(sys.modules, "guarded_test_app", sys.modules[__name__])
    monkeypatch.setenv(guarded_asgi.APP, "guarded_test_app:build()")
    monkeypatch.setenv(guarded_asgi.LOGIN, login)
    return TestClient(guarded_asgi.application())


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", OWN_HOST | AUTH, 200),
        ("/", {"Host": "localhost:9000"} | AUTH, 200),
        ("/", OWN_HOST | AUTH | {"Origin": "http://127.0.0.1:14200"}, 200),
        ("/", OWN_HOST | AUTH | {"Origin": "http://127.0.0.1:9"}, 403),
        ("/", OWN_HOST | AUTH | {"Origin": "http://rebound.test"}, 403),
        ("/", OWN_HOST | AUTH | {"Origin": "null"}, 403),
        ("/", {"Host": "rebound.test:14200"} | AUTH, 403),
        ("/", {"Host": "127.0.0.1.rebound.test:14200"} | AUTH, 403),
        ("/health", {"Host": "rebound.test:14200"}, 403),
        ("/health", OWN_HOST, 200),
        ("/", OWN_HOST, 401),
        ("/health/..", OWN_HOST, 401),
        (
            "/",
            OWN_HOST | {"Authorization": "Basic " + base64.b64encode(b"dreambooth:").decode()},
            401,
        ),
        ("/", OWN_HOST | {"Authorization": f"Bearer {LOGIN}"}, 401),
    ],
)
def test_host_origin_and_login_are_checked(
    path: str, headers: Mapping[str, str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    response = client(monkeypatch, LOGIN).get(path, headers=headers)
    assert response.status_code == status
    assert (response.text == "inside") == (status == 200)
    assert ("www-authenticate" in response.headers) == (status == 401)
    if status == 200:
        assert response.headers["content-security-policy"].startswith("connect-src 'self'")
    if path == "/":
        socket = client(monkeypatch, LOGIN)
        if status == 200:
            with socket.websocket_connect("/talk", headers=headers) as talking:
                assert talking.receive_text() == "inside"
        else:
            with (
                pytest.raises(WebSocketDisconnect),
                socket.websocket_connect("/talk", headers=headers),
            ):
                pass


def test_without_a_login_only_host_and_origin_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert client(monkeypatch, "").get("/", headers=OWN_HOST).text == "inside"
    foreign = {"Origin": "http://127.0.0.1:9"}
    assert client(monkeypatch, "").get("/", headers=OWN_HOST | foreign).status_code == 403
