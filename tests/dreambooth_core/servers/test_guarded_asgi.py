"""Requests to a guarded application: which reach it, and which are refused, and how."""

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
OURS = {"Host": "127.0.0.1:14200"}
KEY = {"Authorization": f"Basic {base64.b64encode(LOGIN.encode()).decode()}"}


async def greet(_: object) -> PlainTextResponse:
    return PlainTextResponse("inside")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("inside")
    await socket.close()


def build() -> Starlette:
    routes = [Route("/", greet, methods=["GET", "POST"]), Route("/health", greet)]
    return Starlette(routes=[*routes, WebSocketRoute("/talk", talk)])


def client(monkeypatch: pytest.MonkeyPatch, login: str) -> TestClient:
    """Of the application that the environment names, which this module builds."""
    monkeypatch.setitem(sys.modules, "guarded_here", sys.modules[__name__])
    monkeypatch.setenv(guarded_asgi.APP, "guarded_here:build()")
    monkeypatch.setenv(guarded_asgi.LOGIN, login)
    return TestClient(guarded_asgi.application())


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", OURS | KEY, 200),
        ("/", {"Host": "localhost:9000"} | KEY, 200),
        ("/", OURS | KEY | {"Origin": "http://127.0.0.1:14200"}, 200),
        ("/", OURS | KEY | {"Origin": "http://127.0.0.1:9"}, 403),
        ("/", OURS | KEY | {"Origin": "http://rebound.test"}, 403),
        ("/", OURS | KEY | {"Origin": "null"}, 403),
        ("/", {"Host": "rebound.test:14200"} | KEY, 403),
        ("/", {"Host": "127.0.0.1.rebound.test:14200"} | KEY, 403),
        ("/health", {"Host": "rebound.test:14200"}, 403),
        ("/health", OURS, 200),
        ("/", OURS, 401),
        ("/health/..", OURS, 401),
        ("/", OURS | {"Authorization": "Basic " + base64.b64encode(b"dreambooth:").decode()}, 401),
        ("/", OURS | {"Authorization": f"Bearer {LOGIN}"}, 401),
    ],
)
def test_who_is_let_in(
    path: str, headers: Mapping[str, str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = client(monkeypatch, LOGIN).get(path, headers=headers)
    assert answer.status_code == status
    assert (answer.text == "inside") == (status == 200)
    assert ("www-authenticate" in answer.headers) == (status == 401)
    if status == 200:
        assert answer.headers["content-security-policy"].startswith("connect-src 'self'")
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


def test_an_application_with_a_login_of_its_own_is_left_to_ask_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert client(monkeypatch, "").get("/", headers=OURS).text == "inside"
    foreign = {"Origin": "http://127.0.0.1:9"}
    assert client(monkeypatch, "").get("/", headers=OURS | foreign).status_code == 403
