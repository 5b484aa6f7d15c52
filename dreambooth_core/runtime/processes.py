"""Child processes that never outlive this process, and the ends of their logs."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dreambooth_core.errors import StageFailed

_GUARD = Path(__file__).with_name("process_guard.py")
_KILL_SECONDS = 10.0


@contextmanager
def supervised(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    stop_signal: signal.Signals = signal.SIGTERM,
    grace: float = 10.0,
    keep_open: tuple[int, ...] = (),
    cwd: Path | None = None,
    pipes: bool = False,
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `command` during the block; its process tree has ended when the block is left.

    Leaving the block, `Popen.terminate()` and the end of this process (also by SIGKILL) send
    `stop_signal` once to the command's process group; `grace` seconds later the rest is killed.
    `returncode` is the command's. Output is appended to `log`, or goes to stderr. `keep_open`: file
    descriptors, such as a lock's, that stay open until the tree has ended. `pipes`: standard input
    and output are pipes to this process. Raises `StageFailed` for an unknown program.
    """
    program = shutil.which(command[0], path=None if env is None else env.get("PATH"))
    if program is None:
        raise StageFailed(f"no program {command[0]} in PATH: install it, or add its folder to PATH")
    guard = [sys.executable, "-I", "-S", str(_GUARD)]
    limits = [str(os.getpid()), str(int(stop_signal)), str(grace)]
    with _output(log) as output:
        process = subprocess.Popen(
            [*guard, *limits, program, *command[1:]],
            env=env,
            stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipes else output,
            stderr=output,
            start_new_session=True,
            pass_fds=keep_open,
            cwd=cwd,
        )
    try:
        yield process
    finally:
        _stop(process, grace)


def last_lines(log: Path, count: int = 20) -> str:
    """The last lines of a log file, for error messages; empty for a missing file."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 200 * count))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-count:])


def end_of(log: Path) -> str:
    """A log file's last three lines as a clause of an error message: `LOG ends with: ...`."""
    end = " | ".join(line.strip() for line in last_lines(log, 3).splitlines() if line.strip())
    return f"{log} ends with: {end[-400:]}" if end else f"{log} is empty"


@contextmanager
def _output(log: Path | None) -> Iterator[int]:
    """File descriptor of the child's output; not stdout, which is reserved for `--json`."""
    if log is None:
        yield 2
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        yield file.fileno()


def _stop(process: "subprocess.Popen[bytes]", grace: float) -> None:
    if process.poll() is not None:
        return
    process.terminate()  # the guard ends the tree even if this process is killed during the wait
    try:
        process.wait(grace + _KILL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
