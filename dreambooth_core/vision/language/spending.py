"""Budget, rate limit and counts of requests to a vision-language model.

A budget is that of a process, or of a run whose spending is recorded in a `Ledger`.
"""

import functools
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Protocol

from dreambooth_core import console
from dreambooth_core.config import Vision
from dreambooth_core.config.vision_profiles import Price
from dreambooth_core.errors import StageFailed
from dreambooth_core.vision.language.answers import Usage


@dataclass(frozen=True)
class Counts:
    """Requests and their results so far."""

    requests: int = 0
    answers: int = 0
    """Validated answers, without those from the cache."""
    cached: int = 0
    """Answers from the cache."""
    failures: int = 0
    """Questions without a usable answer."""
    usage: Usage = field(default_factory=Usage)
    cost: float = 0.0
    """In the prices' currency; 0 without a known price."""

    def __str__(self) -> str:
        return (
            f"{self.answers} answers, {self.failures} failures, {self.cached} from the cache; "
            f"{self.requests} requests, {self.usage.input} + {self.usage.output} tokens, "
            f"cost {self.cost:.4f}"
        )


class Ledger(Hashable, Protocol):
    """Spending per account name, in the prices' currency; thread-safe."""

    def add(self, name: str, amount: float, limit: float | None) -> bool:
        """Add an amount, which may be negative; False, adding nothing, if the total would exceed `limit`."""
        ...

    def spent(self, name: str) -> float:
        """Total so far, with reservations of pending requests."""
        ...


class ProcessLedger:
    """A `Ledger` in memory."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}
        self._lock = threading.Lock()

    def add(self, name: str, amount: float, limit: float | None) -> bool:
        """See `Ledger`."""
        with self._lock:
            total = self.spent(name) + amount
            fits = limit is None or total <= limit
            if fits:
                self._totals[name] = total
            return fits

    def spent(self, name: str) -> float:
        """See `Ledger`."""
        return self._totals.get(name, 0.0)


_LEDGER: ContextVar[Ledger | None] = ContextVar("ledger of the run", default=None)


@contextmanager
def recorded_in(ledger: Ledger) -> Iterator[None]:
    """Let accounts that `account_of` gives during the block record their spending in `ledger`."""
    token = _LEDGER.set(ledger)
    try:
        yield
    finally:
        _LEDGER.reset(token)


def is_recorded() -> bool:
    """Whether the block of a `recorded_in` is running."""
    return _LEDGER.get() is not None


class Account:
    """Enforces a budget and a rate limit on requests; thread-safe."""

    def __init__(
        self,
        budget: float | None = None,
        requests_per_minute: int | None = None,
        price: Price | None = None,
        name: str = "",
        ledger: Ledger | None = None,
    ) -> None:
        """`budget` is in the price's currency and requires `price`; None is unlimited.

        `name`: of the account in `ledger`, by default a new `ProcessLedger`.
        """
        self._budget, self._price = budget, price
        self._name, self._ledger = name, ledger or ProcessLedger()
        self._interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._announced = False
        self._counts = Counts()
        self._lock = threading.Lock()

    @property
    def counts(self) -> Counts:
        return self._counts

    def cost(self, usage: Usage) -> float | None:
        """Cost in the price's currency; None without a known price."""
        price = self._price
        if price is None:
            return None
        cached = price.input if price.cached_input is None else price.cached_input
        fresh = max(0, usage.input - usage.cached_input)
        parts = (fresh * price.input, usage.cached_input * cached, usage.output * price.output)
        return sum(parts) / 1e6

    def book(self, bound: Usage) -> None:
        """Reserve a request's maximum cost, then wait until the rate limit allows it.

        Raises `StageFailed` at once when the rest of the budget is smaller.
        """
        cost = self.cost(bound) or 0.0
        budget = self._budget
        if budget is not None and not self._ledger.add(self._name, cost, budget):
            raise StageFailed(
                f"the next question may cost {cost:.4f} and {self._ledger.spent(self._name):.4f} of "
                f"vision.budget {budget:g} is spent: raise vision.budget, or send fewer questions"
            )
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._interval
        time.sleep(max(0.0, start - time.monotonic()))

    def settle(self, bound: Usage, used: Usage | None) -> None:
        """Replace a reservation by the actual usage; None counts the reservation in full."""
        used = bound if used is None else used
        if self._budget is not None:
            excess = (self.cost(used) or 0.0) - (self.cost(bound) or 0.0)
            self._ledger.add(self._name, excess, None)
        with self._lock:
            counts = self._counts
            self._counts = replace(
                counts,
                requests=counts.requests + 1,
                usage=counts.usage + used,
                cost=counts.cost + (self.cost(used) or 0.0),
            )

    def count(self, answers: int = 0, cached: int = 0, failures: int = 0) -> None:
        """Add to the counts of answers, cached answers and failures."""
        with self._lock:
            counts = self._counts
            self._counts = replace(
                counts,
                answers=counts.answers + answers,
                cached=counts.cached + cached,
                failures=counts.failures + failures,
            )

    def announce(self, line: str) -> None:
        """Log a line, once per account."""
        with self._lock:
            first, self._announced = not self._announced, True
        if first:
            console.say(line)


def account_of(config: Vision) -> Account:
    """The account of a backend, URL, model, key and their limits: of the run, else of the process."""
    where = (config.backend, config.url, config.model, config.key)
    return _account(where, config.budget, config.requests_per_minute, config.price, _LEDGER.get())


@functools.cache
def _account(
    where: tuple[str | None, ...],
    budget: float | None,
    rate: int | None,
    price: Price | None,
    ledger: Ledger | None,
) -> Account:
    return Account(budget, rate, price, " ".join(filter(None, where)), ledger)
