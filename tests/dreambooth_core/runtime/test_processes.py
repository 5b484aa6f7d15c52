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

# Ignores SIGTERM and has a child in another session, like the ranks of torchrun.
IGNORING = [
    "sh",
    "-c",
    "trap '' TERM; setsid sleep 300 & echo $! > family; sleep 300 & echo $! >> family; wait",
]
# Saves on SIGTERM, like a training; one word per signal in the file `saved`.
SAVING = """
import os, pathlib, signal, time
def save(*_):
    with open("saved", "a") as file: file.write("saved ")
    global running; running = False
signal.signal(signal.SIGTERM, save)
running = True
pathlib.Path("family").write_text(str(os.getpid()))
while running: time.sleep(0.02)
time.sleep(0.5)
"""
PARENT = """
import json, sys, time
from dreambooth_core.runtime.processes import supervised
with supervised(json.loads(sys.argv[1]), grace=float(sys.argv[2])):
    time.sleep(300)
"""


def _running(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip() not in ("",) and not state.stdout.startswith("Z")


def _until(condition: object, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


def _pids(folder: Path, count: int) -> list[int]:
    """The process ids in the file `family`, once it has `count` of them."""
    file = folder / "family"
    _until(lambda: file.is_file() and len(file.read_text().split()) == count)
    return [int(pid) for pid in file.read_text().split()]


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_child_that_ends_by_itself(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "child.log"
    for _ in range(2):
        with supervised(["sh", "-c", "echo out; echo err >&2; exit 3"], log=log) as process:
            assert process.wait(10) == 3
    assert log.read_text() == "out\nerr\n" * 2


def test_without_a_log_the_output_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with supervised(["echo", "hello"]) as process:
        process.wait(10)
    assert capfd.readouterr() == ("", "hello\n")


def test_a_childs_signal_is_its_return_code() -> None:
    with supervised(["sh", "-c", "kill -9 $$"]) as process:
        assert process.wait(10) == -signal.SIGKILL


def test_the_environment_is_replaced(tmp_path: Path) -> None:
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
        with supervised(IGNORING, grace=0.3) as process:
            family.extend([process.pid, *_pids(tmp_path, 2)])
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(error):
            run()
    assert len(family) == 3
    assert not any(map(_running, family))


def test_processes_of_a_finished_child_are_ended(tmp_path: Path) -> None:
    with supervised(["sh", "-c", "setsid sleep 300 & echo $! > family"]) as process:
        assert process.wait(10) == 0
        assert not any(map(_running, _pids(tmp_path, 1)))


@pytest.mark.parametrize("way", ["leave", "terminate", "terminate twice", "group"])
def test_the_child_gets_one_signal_and_time_to_save(tmp_path: Path, way: str) -> None:
    with supervised([sys.executable, "-c", SAVING], grace=20) as process:
        (child,) = _pids(tmp_path, 1)
        if way == "group":
            os.killpg(process.pid, signal.SIGTERM)
        elif way != "leave":
            for _ in range(way.count(" ") + 1):
                process.terminate()
                time.sleep(0.1)
    assert process.returncode == 0
    assert (tmp_path / "saved").read_text() == "saved "
    assert not _running(child)


def test_another_stop_signal(tmp_path: Path) -> None:
    script = SAVING.replace("SIGTERM", "SIGUSR1")
    command = [sys.executable, "-c", script]
    with supervised(command, stop_signal=signal.SIGUSR1) as process:
        _pids(tmp_path, 1)
    assert process.returncode == 0
    assert (tmp_path / "saved").read_text() == "saved "


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("kind", ["ignoring", "saving"])
def test_no_process_outlives_a_killed_parent(tmp_path: Path, number: int, kind: str) -> None:
    command = IGNORING if kind == "ignoring" else [sys.executable, "-c", SAVING]
    parent = _parent(command, grace=0.5 if kind == "ignoring" else 20)
    family = _pids(tmp_path, 2 if kind == "ignoring" else 1)
    guards = _children(parent.pid)
    assert len(guards) == 1
    assert all(map(_running, family))
    parent.send_signal(number)
    assert parent.wait(10) == -number
    _until(lambda: not any(map(_running, [*family, *guards])))
    if kind == "saving":
        assert (tmp_path / "saved").read_text() == "saved "


def test_killing_the_guard_ends_the_child(tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs prctl")
    with supervised([sys.executable, "-c", SAVING]) as process:
        (child,) = _pids(tmp_path, 1)
        process.kill()
        _until(lambda: not _running(child))


def test_the_child_survives_the_thread_that_started_it() -> None:
    before = set(_children(os.getpid()))
    child = supervised(["sleep", "300"])
    thread = threading.Thread(target=child.__enter__)
    thread.start()
    thread.join()
    time.sleep(0.5)
    sleepers = [pid for guard in set(_children(os.getpid())) - before for pid in _children(guard)]
    assert len(sleepers) == 1
    assert _running(sleepers[0])
    child.__exit__(None, None, None)
    assert not _running(sleepers[0])


def test_an_inherited_lock_is_released_only_after_the_child(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    script = PARENT.replace(
        "with supervised(",
        "import fcntl; lock = open('lock', 'w'); fcntl.flock(lock, 2)\nwith supervised(",
    ).replace("grace=", "keep_open=(lock.fileno(),), grace=")
    parent = _parent([sys.executable, "-c", SAVING], grace=20, script=script)
    (child,) = _pids(tmp_path, 1)
    parent.kill()
    parent.wait(10)
    with lock.open() as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not _running(child)


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
        [sys.executable, "-c", script, json.dumps(command), str(grace)],
        env=env,
        # under nohup SIGHUP is ignored, which a child inherits
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )


def _children(parent: int) -> list[int]:
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,comm="], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in listing.stdout.splitlines()]
    return [int(pid) for pid, above, name in rows if int(above) == parent and name != "ps"]
