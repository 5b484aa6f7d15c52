"""Guard process between a parent and a child: ends the child's process tree with its parent.

Run by `processes.supervised` as a script, with the standard library only:
`process_guard.py PARENT_PID STOP_SIGNAL GRACE_SECONDS COMMAND...`. It polls the parent's process id,
because Linux sends the parent death signal when the parent's *thread* ends, and macOS has none. On
Linux it is a child subreaper, so that it also finds descendants in other sessions (torchrun's
ranks).
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType

POLL_SECONDS = 0.05
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Run the command until it ends or is stopped; returns its exit status, negative for a signal."""
    parent, stop_signal, grace = int(arguments[0]), int(arguments[1]), float(arguments[2])
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, remember)
    prctl = _prctl()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:
        return -signal.SIGTERM
    started = subprocess.Popen(
        arguments[3:],
        start_new_session=True,
        # single-threaded, so the signal is sent only when this process ends
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    child = started.pid
    deadline: float | None = None
    while (status := _reap(child)) is None:
        if deadline is None and (received or os.getppid() != parent):
            _signal_group(child, stop_signal)
            deadline = time.monotonic() + grace
        if deadline is not None and time.monotonic() > deadline:
            _signal_group(child, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    _end_descendants(child)
    started.returncode = (
        status  # `_reap` has waited for it; without this, Popen would warn or wait again
    )
    return status


def _prctl() -> Callable[[int, int], None]:
    if not sys.platform.startswith("linux"):
        return lambda option, value: None
    libc = ctypes.CDLL(None)

    def call(option: int, value: int) -> None:
        libc.prctl(option, value, 0, 0, 0)

    return call


def _reap(child: int) -> int | None:
    """Reap ended processes; returns the exit status of `child` once it has ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 1
        if pid == 0:
            return None
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _signal_group(child: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, number)


def _end_descendants(child: int) -> None:
    """Kill the child's remaining descendants, which this process has adopted as subreaper."""
    _signal_group(child, signal.SIGKILL)
    while left := _children_of(os.getpid()):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.01)


def _children_of(parent: int) -> list[int]:
    if not os.path.isdir("/proc/self"):
        return []
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
            # the command name in parentheses may contain spaces and parentheses
            if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                found.append(int(name))
    return found


if __name__ == "__main__":
    code = main(sys.argv[1:])
    if code < 0:
        # end by the same signal as the child
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
