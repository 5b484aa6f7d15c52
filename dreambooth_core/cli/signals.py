"""Signal handling of resumable commands."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from dreambooth_core.errors import Preempted


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise `Preempted` in the block on SIGINT, SIGTERM, SIGHUP or SIGUSR1.

    Signals that the parent process set to be ignored stay ignored, as SIGHUP under `nohup`.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Preempted("stopped: results so far are kept, the same command resumes") from error
