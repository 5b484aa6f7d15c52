"""One idea: a child process that cannot outlive us, whatever way we end."""

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
    """Run `command` while the block runs; its whole process tree is gone when the block is left.

    Leaving, `Popen.terminate()`, and our own death (SIGKILL too) send `stop_signal` once to the
    command's process group; what is left after `grace` seconds is killed. `returncode` is the
    command's. Output goes to the end of `log`, or to our stderr. `keep_open`: file descriptors, such as
    one with a lock, that stay open until the tree is gone. `pipes`: standard input and output are
    pipes to us. Raises `StageFailed` when there is no such program.
    """
    program = shutil.which(command[0], path=None if env is None else env.get("PATH"))
    if program is None:
        raise StageFailed(f"there is no program {command[0]}: install it, or put it into PATH")
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
    """The end of a log file, for an error's sentence; empty when there is none."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 200 * count))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-count:])


def end_of(log: Path) -> str:
    """A log file's last lines as a clause of a sentence: `LOG ends with: ...`."""
    end = " | ".join(line.strip() for line in last_lines(log, 3).splitlines() if line.strip())
    return f"{log} ends with: {end[-400:]}" if end else f"{log} is empty"


@contextmanager
def _output(log: Path | None) -> Iterator[int]:
    """Where a child may write; our stdout belongs to `--json`."""
    if log is None:
        yield 2
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        yield file.fileno()


def _stop(process: "subprocess.Popen[bytes]", grace: float) -> None:
    """When even this wait is cut short, the guard has its order and goes on by itself."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(grace + _KILL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
