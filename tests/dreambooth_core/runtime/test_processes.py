import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dreambooth_core.errors import StageFailed
from dreambooth_core.runtime.processes import last_lines, supervised

# Deaf to SIGTERM, and with a child in a session of its own, as the ranks of torchrun are.
DEAF = [
    "sh",
    "-c",
    "trap '' TERM; setsid sleep 300 & echo $! > family; sleep 300 & echo $! >> family; wait",
]
# Saves when asked to stop, as a training does; counts how often it is asked.
SAVING = """
import os, pathlib, signal, time
def save(*_):
    with open("saved", "a") as file: file.write("saved ")
    global go_on; go_on = False
signal.signal(signal.SIGTERM, save)
go_on = True
pathlib.Path("family").write_text(str(os.getpid()))
while go_on: time.sleep(0.02)
time.sleep(0.5)
"""
PARENT = """
import json, sys, time
from dreambooth_core.runtime.processes import supervised
with supervised(json.loads(sys.argv[1]), grace=float(sys.argv[2])):
    time.sleep(300)
"""


def _lives(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip() not in ("",) and not state.stdout.startswith("Z")


def _until(condition: object, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def _family(folder: Path, count: int) -> list[int]:
    """The process ids in the file `family`, once there are so many."""
    file = folder / "family"
    _until(lambda: file.is_file() and len(file.read_text().split()) == count)
    return [int(pid) for pid in file.read_text().split()]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_child_that_ends_by_itself(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "child.log"
    for _ in range(2):
        with supervised(["sh", "-c", "echo out; echo err >&2; exit 3"], log=log) as process:
            assert process.wait(10) == 3
    assert log.read_text() == "out\nerr\n" * 2


def test_without_a_log_the_output_is_not_on_our_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    with supervised(["echo", "hello"]) as process:
        process.wait(10)
    assert capfd.readouterr() == ("", "hello\n")


def test_a_signal_is_seen_as_the_childs_end() -> None:
    with supervised(["sh", "-c", "kill -9 $$"]) as process:
        assert process.wait(10) == -signal.SIGKILL


def test_the_environment_is_what_is_given(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "ONLY": "this"}
    with supervised(["env"], env=env, log=tmp_path / "log") as process:
        process.wait(10)
    lines = set((tmp_path / "log").read_text().split())
    assert {"ONLY=this", f"PATH={env['PATH']}"} <= lines
    assert not any(line.startswith("HOME=") for line in lines)


def test_no_such_program() -> None:
    with (
        pytest.raises(StageFailed, match="no program no-such-program"),
        supervised(["no-such-program"]),
    ):
        pass


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, SystemExit, ValueError])
def test_leaving_the_block_ends_the_whole_tree(
    tmp_path: Path, error: type[BaseException] | None
) -> None:
    family: list[int] = []

    def run() -> None:
        with supervised(DEAF, grace=0.3) as process:
            family.extend([process.pid, *_family(tmp_path, 2)])
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert len(family) == 3
    assert not any(map(_lives, family))


def test_what_a_finished_child_left_behind_is_ended(tmp_path: Path) -> None:
    with supervised(["sh", "-c", "setsid sleep 300 & echo $! > family"]) as process:
        assert process.wait(10) == 0
        assert not any(map(_lives, _family(tmp_path, 1)))


@pytest.mark.parametrize("way", ["leave", "terminate", "terminate twice", "group"])
def test_the_child_is_asked_once_and_has_time_to_save(tmp_path: Path, way: str) -> None:
    with supervised([sys.executable, "-c", SAVING], grace=20) as process:
        (child,) = _family(tmp_path, 1)
        if way == "group":
            os.killpg(process.pid, signal.SIGTERM)
        elif way != "leave":
            for _ in range(way.count(" ") + 1):
                process.terminate()
                time.sleep(0.1)
    assert process.returncode == 0
    assert (tmp_path / "saved").read_text() == "saved "
    assert not _lives(child)


def test_another_stop_signal(tmp_path: Path) -> None:
    script = SAVING.replace("SIGTERM", "SIGUSR1")
    command = [sys.executable, "-c", script]
    with supervised(command, stop_signal=signal.SIGUSR1) as process:
        _family(tmp_path, 1)
    assert process.returncode == 0
    assert (tmp_path / "saved").read_text() == "saved "


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("kind", ["deaf", "saving"])
def test_nothing_outlives_a_killed_parent(tmp_path: Path, number: int, kind: str) -> None:
    command = DEAF if kind == "deaf" else [sys.executable, "-c", SAVING]
    parent = _parent(command, grace=0.5 if kind == "deaf" else 20)
    family = _family(tmp_path, 2 if kind == "deaf" else 1)
    guards = _children(parent.pid)
    assert len(guards) == 1
    assert all(map(_lives, family))
    parent.send_signal(number)
    assert parent.wait(10) == -number
    _until(lambda: not any(map(_lives, [*family, *guards])))
    if kind == "saving":
        assert (tmp_path / "saved").read_text() == "saved "


def test_killing_the_guard_ends_the_child(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs prctl")
    with supervised([sys.executable, "-c", SAVING]) as process:
        (child,) = _family(tmp_path, 1)
        process.kill()
        _until(lambda: not _lives(child))


def test_the_thread_that_started_it_may_end() -> None:
    before = set(_children(os.getpid()))
    child = supervised(["sleep", "300"])
    thread = threading.Thread(target=child.__enter__)
    thread.start()
    thread.join()
    time.sleep(0.5)
    sleepers = [pid for guard in set(_children(os.getpid())) - before for pid in _children(guard)]
    assert len(sleepers) == 1
    assert _lives(sleepers[0])
    child.__exit__(None, None, None)
    assert not _lives(sleepers[0])


def test_a_held_lock_is_free_only_when_the_child_has_ended(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    script = PARENT.replace(
        "with supervised(",
        "import fcntl; lock = open('lock', 'w'); fcntl.flock(lock, 2)\nwith supervised(",
    ).replace("grace=", "keep_open=(lock.fileno(),), grace=")
    parent = _parent([sys.executable, "-c", SAVING], grace=20, script=script)
    (child,) = _family(tmp_path, 1)
    parent.kill()
    parent.wait(10)
    with lock.open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not _lives(child)


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log) == ""
    log.write_text("\n".join(f"line {number}" for number in range(10_000)))
    assert last_lines(log, 2) == "line 9998\nline 9999"


def _parent(command: list[str], grace: float, script: str = PARENT) -> "subprocess.Popen[bytes]":
    import json

    root = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(command), str(grace)], env=env
    )


def _children(parent: int) -> list[int]:
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in listing.stdout.splitlines()]
    return [int(pid) for pid, above, name in rows if int(above) == parent and name != "ps"]
