"""Calls to other machines that must answer in a bounded time, whatever the library underneath does."""

import threading
from collections.abc import Callable
from typing import TypeVar

from dreambooth_core import console

SERVER_SECONDS = 30.0
"""For the first question to a store, MLflow or Prefect, in all: name lookup, retries and pauses."""
SILENT_SECONDS = 1.0
"""After which a line on stderr says what is waited for."""

R = TypeVar("R")


def within(seconds: float, call: Callable[[], R], waiting: str) -> R:
    """The call's result; raises what it raises, and `TimeoutError` after `seconds`.

    The call runs in a thread, which is left behind at the deadline: libraries' own timeouts hold for
    one read or one attempt each, and a name lookup has none. `waiting` is printed after a second.
    """
    results: list[R] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True, name="bounded call")
    thread.start()
    thread.join(min(SILENT_SECONDS, seconds))
    if thread.is_alive():
        console.say(f"{waiting}; up to {seconds:.0f} s")
        thread.join(seconds - SILENT_SECONDS)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:.0f} s")
    return results[0]
