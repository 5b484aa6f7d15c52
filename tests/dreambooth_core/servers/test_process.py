import os
import sys
import urllib.request
from pathlib import Path

import pytest

from dreambooth_core.errors import StageFailed
from dreambooth_core.servers.process import Server, claimed, exported, running


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def _server(folder: Path, script: str = "", seconds: float = 30.0) -> Server:
    """A web server, or `script` with the port as its argument."""

    def command(port: int) -> list[str]:
        if script:
            return [sys.executable, "-c", script, str(port)]
        return [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]

    return Server("a web server", command, _is_up, os.environ, folder, seconds)


def test_a_server_runs_while_the_block_runs(tmp_path: Path) -> None:
    with claimed(tmp_path / "d") as lock, running(_server(tmp_path / "d"), lock) as port:
        assert _is_up(port)
    assert not _is_up(port)


def test_meanwhile_is_called_once_with_the_port_during_the_start(tmp_path: Path) -> None:
    ports: list[int] = []
    with claimed(tmp_path) as lock, running(_server(tmp_path), lock, ports.append) as port:
        assert ports == [port]


def test_the_error_for_a_failed_start_has_the_end_of_the_log(tmp_path: Path) -> None:
    script = "import sys; print('tried'); sys.exit('no space left')"
    with (
        pytest.raises(StageFailed, match=r"a web server ended during its start.*no space left"),
        claimed(tmp_path) as lock,
        running(_server(tmp_path, script), lock),
    ):
        pass


def test_a_start_is_retried_at_another_port(tmp_path: Path) -> None:
    first = tmp_path / "first"
    script = f"""
import http.server, os, sys
if not os.path.exists({str(first)!r}):
    open({str(first)!r}, "w")
    sys.exit("address already in use")
handler = http.server.SimpleHTTPRequestHandler
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), handler).serve_forever()
"""
    with claimed(tmp_path) as lock, running(_server(tmp_path, script), lock) as port:
        assert _is_up(port)
    assert first.exists()
    assert not _is_up(port)


def test_a_server_that_never_responds(tmp_path: Path) -> None:
    server = _server(tmp_path, "import time; time.sleep(300)", seconds=0.5)
    with (
        pytest.raises(StageFailed, match="did not answer within"),
        claimed(tmp_path) as lock,
        running(server, lock),
    ):
        pass


def test_a_folder_has_one_owner(tmp_path: Path) -> None:
    with (
        claimed(tmp_path),
        pytest.raises(StageFailed, match=f"in use by another run .process {os.getpid()}."),
    ):
        claimed(tmp_path).__enter__()
    with claimed(tmp_path):
        pass


def test_exported_variables_are_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLD", "1")
    monkeypatch.delenv("NEW", raising=False)
    monkeypatch.setenv("HIDDEN", "2")
    before = dict(os.environ)

    def break_inside() -> None:
        with exported({"OLD": "3", "NEW": "4", "HIDDEN": None}):
            assert (os.environ["OLD"], os.environ["NEW"]) == ("3", "4")
            assert "HIDDEN" not in os.environ
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        break_inside()
    assert dict(os.environ) == before
