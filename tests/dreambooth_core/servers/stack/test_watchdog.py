"""A watchdog with Python's web server: started, killed, orphaned, taken over."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from dreambooth_core.servers.process import free_port
from dreambooth_core.servers.stack import state
from dreambooth_core.servers.stack.http import is_healthy
from dreambooth_core.servers.stack.service import Service
from dreambooth_core.servers.stack.watchdog import TRIES, Watchdog

# its child process listens at the port as well, as with `mlflow server`
FORKING = """
import http.server, os, sys
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler)
os.fork()
server.serve_forever()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    state.stop_all(tmp_path)
    assert state.marked(tmp_path) == []


def _service(script: str = "", **other: object) -> Service:
    port = free_port(0)
    server = (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port))
    link = f"http://127.0.0.1:{port}/"
    given = {
        "name": "web",
        "title": "Web",
        "link": link,
        "ports": (port,),
        "command": (sys.executable, "-c", script, str(port)) if script else server,
        "env": {"COLOUR": "green"},
        "is_up": partial(is_healthy, link),
        "grace": 5.0,
    }
    return Service(**{**given, **other})  # type: ignore[arg-type]


def _step_until(watchdog: Watchdog, until: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, watchdog.error
        watchdog.step(())
        time.sleep(0.05)


def _ready(watchdog: Watchdog) -> int:
    _step_until(watchdog, lambda: watchdog.phase == "ready")
    return watchdog.pid


def _is_running(pid: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return listed.stdout.strip()[:1] not in ("", "Z")


def test_a_killed_service_is_restarted(folder: Path) -> None:
    messages: list[str] = []
    watchdog = Watchdog(folder, _service(), 0, messages.append)
    first = _ready(watchdog)
    started = state.read(folder, "web")
    assert started is not None
    assert started.pid == first
    os.kill(first, signal.SIGKILL)
    _step_until(watchdog, lambda: watchdog.pid not in (0, first))
    _ready(watchdog)
    assert not _is_running(first)
    assert is_healthy(watchdog.service.link)
    assert [sentence.split(";")[0] for sentence in messages] == [
        f"Web is ready: {watchdog.service.link}",
        "Web ended",
        f"Web is ready: {watchdog.service.link}",
    ]


def test_child_processes_of_a_killed_service_are_stopped(folder: Path) -> None:
    watchdog = Watchdog(folder, _service(FORKING), 0, print)
    first = _ready(watchdog)
    _step_until(watchdog, lambda: len(state.marked(folder)) == 2)
    os.kill(first, signal.SIGKILL)
    _step_until(watchdog, lambda: watchdog.pid not in (0, first))
    _ready(watchdog)
    assert first not in state.marked(folder)


def test_the_runs_of_a_killed_worker_are_kept(folder: Path) -> None:
    script = "import subprocess, sys, time; subprocess.Popen(['sleep', '300']); time.sleep(300)"
    service = _service(script, ports=(), is_up=lambda: True, children_outlive=True)
    watchdog = Watchdog(folder, service, 0, print)
    worker = _ready(watchdog)
    _step_until(watchdog, lambda: len(state.marked(folder, "web")) == 2)
    (run,) = set(state.marked(folder, "web")) - {worker}
    os.kill(worker, signal.SIGKILL)
    _step_until(watchdog, lambda: watchdog.pid not in (0, worker))
    assert _is_running(run)
    state.stop_all(folder)
    assert not _is_running(run)


def test_a_running_service_is_taken_over_if_its_fingerprint_is_equal(folder: Path) -> None:
    service = _service()
    old = _ready(Watchdog(folder, service, 0, print))

    again = Watchdog(folder, service, 0, print)
    again.take_over(state.read(folder, "web"))
    assert _ready(again) == old

    other = Watchdog(folder, _service(name="web", env={"COLOUR": "red"}), 0, print)
    other.take_over(state.read(folder, "web"))
    assert not _is_running(old)
    assert _ready(other) != old
    assert not is_healthy(service.link)


def test_a_service_without_a_valid_state_file_is_replaced(folder: Path) -> None:
    service = _service(children_outlive=True)
    old = _ready(Watchdog(folder, service, 0, print))
    state.state_file(folder, "web").write_text('{"cut off')
    watchdog = Watchdog(folder, service, 0, print)
    watchdog.take_over(state.read(folder, "web"))
    assert not _is_running(old)
    assert _ready(watchdog) != old


def test_a_reused_process_id_is_not_taken_over(folder: Path) -> None:
    other_process = subprocess.Popen(["sleep", "300"])
    try:
        service = _service()
        old = state.StartedService(
            service="web",
            fingerprint=service.fingerprint,
            position=0,
            stop_signal=15,
            grace=1,
            pid=other_process.pid,
        )
        watchdog = Watchdog(folder, service, 0, print)
        watchdog.take_over(old)
        assert _ready(watchdog) != other_process.pid
        state.stop(folder, old)
        assert other_process.poll() is None
    finally:
        other_process.kill()
        other_process.wait()


def test_a_service_that_never_starts_is_given_up_with_the_end_of_its_log(folder: Path) -> None:
    messages: list[str] = []
    script = "import sys; sys.exit('no space left on device')"
    watchdog = Watchdog(folder, _service(script), 0, messages.append)
    _step_until(watchdog, lambda: watchdog.phase == "given up")
    assert "no space left on device" in watchdog.error
    pauses = [sentence.rpartition("next try in ")[2] for sentence in messages[:-1]]
    assert pauses == ["1 s", "2 s", "4 s"]
    assert f"given up after {TRIES} failed starts" in messages[-1]


def test_a_service_that_does_not_respond_is_stopped_and_retried(folder: Path) -> None:
    messages: list[str] = []
    service = _service(seconds=1.0, is_up=lambda: False)
    watchdog = Watchdog(folder, service, 0, messages.append)
    _step_until(watchdog, lambda: bool(messages))
    assert "did not respond within 1 s" in messages[0]
    assert state.marked(folder) == []


def test_a_port_used_by_another_program_is_named(folder: Path) -> None:
    messages: list[str] = []
    service = _service()
    other = subprocess.Popen([*service.command], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not is_healthy(service.link):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        watchdog = Watchdog(folder, service, 0, messages.append)
        watchdog.step(())
        assert f"port {service.ports[0]} is used by another program: end it" in messages[0]
        assert state.marked(folder) == []
    finally:
        other.kill()
        other.wait()


def test_a_service_waits_for_its_dependencies(folder: Path) -> None:
    watchdog = Watchdog(folder, _service(after=("s3", "prefect")), 0, print)
    watchdog.step({"s3"})
    assert watchdog.phase == "waiting"
    watchdog.step({"s3", "prefect", "other"})
    assert watchdog.phase == "starting"


def test_a_failed_set_up_is_retried(folder: Path) -> None:
    from dreambooth_core.errors import StageFailed

    messages: list[str] = []
    errors = [StageFailed("the bucket is not ready")]

    def set_up() -> None:
        if errors:
            raise errors.pop()

    watchdog = Watchdog(folder, _service(set_up=set_up), 0, messages.append)
    _step_until(watchdog, lambda: bool(messages))
    pid = watchdog.pid
    assert "the bucket is not ready; next try in 1 s" in messages[0]
    assert _ready(watchdog) == pid
