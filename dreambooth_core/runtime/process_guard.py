"""The process between us and a child: it ends the child's whole tree when asked or when we die.

Run by `processes.supervised` as a script of its own, with nothing but the standard library:
`guard.py PARENT_PID STOP_SIGNAL GRACE_SECONDS COMMAND...`. It looks whether its parent is still
there instead of relying on a death signal, since that one is sent when the parent's *thread* ends,
and macOS has none. On Linux it adopts orphans, so that children of children in sessions of their
own (torchrun's ranks) are found as well.
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
    """Run the command to its end, or until stopped; answers its exit status, signals negative."""
    parent, stop_signal, grace = int(arguments[0]), int(arguments[1]), float(arguments[2])
    asked: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, remember)
    prctl = _prctl()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    if os.getppid() != parent:
        return -signal.SIGTERM
    started = subprocess.Popen(
        arguments[3:],
        start_new_session=True,
        # this process has one thread, so here the death signal means what it says
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
    )
    child = started.pid
    deadline: float | None = None
    while (status := _reap(child)) is None:
        if deadline is None and (asked or os.getppid() != parent):
            _signal_group(child, stop_signal)
            deadline = time.monotonic() + grace
        if deadline is not None and time.monotonic() > deadline:
            _signal_group(child, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    _end_descendants(child)
    started.returncode = status  # it must neither be waited for nor be dropped before: we reap
    return status


def _prctl() -> Callable[[int, int], None]:
    if not sys.platform.startswith("linux"):
        return lambda option, value: None
    libc = ctypes.CDLL(None)

    def call(option: int, value: int) -> None:
        libc.prctl(option, value, 0, 0, 0)

    return call


def _reap(child: int) -> int | None:
    """Collect whatever has ended; the child's exit status once it is among it."""
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
    """Kill what the child left behind; adopted orphans show up as children of ours."""
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
            # the command's name, in parentheses, may itself hold spaces and parentheses
            if int(file.read().rpartition(b")")[2].split()[1]) == parent:
                found.append(int(name))
    return found


if __name__ == "__main__":
    code = main(sys.argv[1:])
    if code < 0:
        # our own end must look like the child's
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)
