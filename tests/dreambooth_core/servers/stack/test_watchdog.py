"""One part at a time: a web server of Python's, started, killed, left behind, taken over."""

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
from dreambooth_core.servers.stack import state, watchdog
from dreambooth_core.servers.stack.http import is_well
from dreambooth_core.servers.stack.service import Service
from dreambooth_core.servers.stack.watchdog import Watchdog

# Its child holds the port as well, as those of `mlflow server` do.
FAMILY = """
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


def _part(script: str = "", **other: object) -> Service:
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
        "answers": partial(is_well, link),
        "grace": 5.0,
    }
    return Service(**{**given, **other})  # type: ignore[arg-type]


def _stepped(watching: Watchdog, until: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < deadline, watching.error
        watching.step(())
        time.sleep(0.05)


def _ready(watching: Watchdog) -> int:
    _stepped(watching, lambda: watching.phase == "ready")
    return watching.pid


def _lives(pid: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return listed.stdout.strip()[:1] not in ("", "Z")


def test_a_part_that_is_killed_is_started_again(folder: Path) -> None:
    told: list[str] = []
    watching = Watchdog(folder, _part(), 0, told.append)
    first = _ready(watching)
    started = state.read(folder, "web")
    assert started is not None
    assert started.pid == first
    os.kill(first, signal.SIGKILL)
    _stepped(watching, lambda: watching.pid not in (0, first))
    _ready(watching)
    assert not _lives(first)
    assert is_well(watching.part.link)
    assert [sentence.split(";")[0] for sentence in told] == [
        f"Web is ready: {watching.part.link}",
        "Web ended",
        f"Web is ready: {watching.part.link}",
    ]


def test_what_a_killed_part_leaves_behind_gives_its_port_back(folder: Path) -> None:
    watching = Watchdog(folder, _part(FAMILY), 0, print)
    first = _ready(watching)
    _stepped(watching, lambda: len(state.marked(folder)) == 2)
    os.kill(first, signal.SIGKILL)
    _stepped(watching, lambda: watching.pid not in (0, first))
    _ready(watching)
    assert first not in state.marked(folder)


def test_the_runs_of_a_killed_worker_go_on(folder: Path) -> None:
    script = "import subprocess, sys, time; subprocess.Popen(['sleep', '300']); time.sleep(300)"
    part = _part(script, ports=(), answers=lambda: True, leaves_work=True)
    watching = Watchdog(folder, part, 0, print)
    worker = _ready(watching)
    _stepped(watching, lambda: len(state.marked(folder, "web")) == 2)
    (run,) = set(state.marked(folder, "web")) - {worker}
    os.kill(worker, signal.SIGKILL)
    _stepped(watching, lambda: watching.pid not in (0, worker))
    assert _lives(run)
    state.stop_all(folder)
    assert not _lives(run)


def test_what_was_left_is_taken_over_if_it_would_be_started_alike(folder: Path) -> None:
    part = _part()
    left = _ready(Watchdog(folder, part, 0, print))

    again = Watchdog(folder, part, 0, print)
    again.take_over(state.read(folder, "web"))
    assert _ready(again) == left

    other = Watchdog(folder, _part(name="web", env={"COLOUR": "red"}), 0, print)
    other.take_over(state.read(folder, "web"))
    assert not _lives(left)
    assert _ready(other) != left
    assert not is_well(part.link)


def test_without_its_state_file_a_part_is_replaced(folder: Path) -> None:
    part = _part(leaves_work=True)
    left = _ready(Watchdog(folder, part, 0, print))
    state.state_file(folder, "web").write_text('{"cut off')
    watching = Watchdog(folder, part, 0, print)
    watching.take_over(state.read(folder, "web"))
    assert not _lives(left)
    assert _ready(watching) != left


def test_a_number_that_another_process_got_is_not_taken_over(folder: Path) -> None:
    stranger = subprocess.Popen(["sleep", "300"])
    try:
        part = _part()
        left = state.StartedService(
            part="web",
            fingerprint=part.fingerprint,
            order=0,
            stop_signal=15,
            grace=1,
            pid=stranger.pid,
        )
        watching = Watchdog(folder, part, 0, print)
        watching.take_over(left)
        assert _ready(watching) != stranger.pid
        state.stop(folder, left)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_part_that_never_starts_is_given_up_with_the_end_of_its_log(folder: Path) -> None:
    told: list[str] = []
    script = "import sys; sys.exit('no space left on device')"
    watching = Watchdog(folder, _part(script), 0, told.append)
    _stepped(watching, lambda: watching.phase == "given up")
    assert "no space left on device" in watching.error
    pauses = [sentence.rpartition("tried again in ")[2] for sentence in told[:-1]]
    assert pauses == ["1 s", "2 s", "4 s"]
    assert f"given up after {watchdog.TRIES} starts in vain" in told[-1]


def test_a_part_that_does_not_answer_is_ended_and_tried_again(folder: Path) -> None:
    told: list[str] = []
    part = _part(seconds=1.0, answers=lambda: False)
    watching = Watchdog(folder, part, 0, told.append)
    _stepped(watching, lambda: bool(told))
    assert "did not answer within 1 s" in told[0]
    assert state.marked(folder) == []


def test_a_port_of_somebody_else_is_named(folder: Path) -> None:
    told: list[str] = []
    part = _part()
    other = subprocess.Popen([*part.command], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not is_well(part.link):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        watching = Watchdog(folder, part, 0, told.append)
        watching.step(())
        assert f"port {part.ports[0]} is taken by another program: end it" in told[0]
        assert state.marked(folder) == []
    finally:
        other.kill()
        other.wait()


def test_a_part_waits_for_those_that_it_needs(folder: Path) -> None:
    watching = Watchdog(folder, _part(after=("s3", "prefect")), 0, print)
    watching.step({"s3"})
    assert watching.phase == "waiting"
    watching.step({"s3", "prefect", "other"})
    assert watching.phase == "starting"


def test_what_must_be_done_once_it_answers_is_tried_again(folder: Path) -> None:
    from dreambooth_core.errors import StageFailed

    told: list[str] = []
    left = [StageFailed("the bucket is not ready")]

    def settle() -> None:
        if left:
            raise left.pop()

    watching = Watchdog(folder, _part(settle=settle), 0, told.append)
    _stepped(watching, lambda: bool(told))
    pid = watching.pid
    assert "the bucket is not ready; tried again in 1 s" in told[0]
    assert _ready(watching) == pid
