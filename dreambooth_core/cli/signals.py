"""Orders to stop, for commands that can go on later."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from dreambooth_core.errors import Preempted


@contextmanager
def interruptible() -> Iterator[None]:
    """Any order to stop interrupts the block, which then ends as preempted.

    But none that whoever started us has had ignored, as `nohup` does with the terminal's end.
    """
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Preempted("stopped: what is done is kept, the same command goes on") from error
