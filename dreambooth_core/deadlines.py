"""Calls to other machines with a deadline, independent of the libraries' own timeouts."""

import threading
from collections.abc import Callable
from typing import TypeVar

from dreambooth_core import console

SERVER_SECONDS = 30.0
"""Deadline of the first request to a store, MLflow or Prefect, retries and name lookup included."""
SILENT_SECONDS = 1.0
"""Time after which a line on stderr names the pending request."""

R = TypeVar("R")


def within(seconds: float, call: Callable[[], R], waiting: str) -> R:
    """The call's result; raises what it raises, and `TimeoutError` after `seconds`.

    The call runs in a daemon thread, abandoned at the deadline: the libraries' own timeouts apply to
    one read or one attempt each, and a name lookup has none. `waiting` is printed to stderr after
    `SILENT_SECONDS`.
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
        raise TimeoutError(f"no response within {seconds:.0f} s")
    return results[0]
