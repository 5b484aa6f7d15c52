"""Concurrent questions to a vision-language model."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dreambooth_core.errors import Unanswered

T = TypeVar("T")
R = TypeVar("R")


def answers_or_failures(
    ask: Callable[[T], R], items: Sequence[T], at_once: int
) -> list[R | Unanswered]:
    """The answer about each item, in the items' order, or the `Unanswered` that was raised.

    At most `at_once` calls run at a time. Any other error of a call ends the rest and is raised.
    """

    def answer(item: T) -> R | Unanswered:
        try:
            return ask(item)
        except Unanswered as error:
            return error

    with ThreadPoolExecutor(at_once) as pool:
        try:
            return list(pool.map(answer, items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
