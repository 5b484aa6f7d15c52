"""What a process asks of a vision-language model: its budget, its rate, and the counts of both."""

import functools
import threading
import time
from dataclasses import dataclass, field, replace

from dreambooth_core import console
from dreambooth_core.config import Vision
from dreambooth_core.config.vision_profiles import Price
from dreambooth_core.errors import StageFailed
from dreambooth_core.vision.language.answers import Usage


@dataclass(frozen=True)
class Counts:
    """What was asked so far."""

    requests: int = 0
    answers: int = 0
    """Validated ones, those from the cache not included."""
    cached: int = 0
    """Answers from the cache."""
    failures: int = 0
    """Questions without a usable answer."""
    usage: Usage = field(default_factory=Usage)
    cost: float = 0.0
    """In the prices' currency; 0 where no price is known."""

    def __str__(self) -> str:
        return (
            f"{self.answers} answers, {self.failures} failures, {self.cached} from the cache; "
            f"{self.requests} requests, {self.usage.input} + {self.usage.output} tokens, "
            f"cost {self.cost:.4f}"
        )


class Account:
    """Books requests against a budget and a rate limit; may be used from several threads."""

    def __init__(
        self,
        budget: float | None = None,
        requests_per_minute: int | None = None,
        price: Price | None = None,
    ) -> None:
        """`budget` is in the price's currency and needs a price; None is no limit."""
        self._budget, self._price = budget, price
        self._interval = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._booked = 0.0
        self._announced = False
        self._counts = Counts()
        self._lock = threading.Lock()

    @property
    def counts(self) -> Counts:
        return self._counts

    def cost(self, usage: Usage) -> float | None:
        """Of that many tokens; None where no price is known."""
        price = self._price
        if price is None:
            return None
        cached = price.input if price.cached_input is None else price.cached_input
        fresh = max(0, usage.input - usage.cached_input)
        parts = (fresh * price.input, usage.cached_input * cached, usage.output * price.output)
        return sum(parts) / 1e6

    def book(self, bound: Usage) -> None:
        """Set aside what a request costs at most, then wait until the rate limit allows it.

        Raises `StageFailed`, without waiting, when the budget does not have that much left.
        """
        cost = self.cost(bound) or 0.0
        with self._lock:
            spent = self._counts.cost + self._booked
            if self._budget is not None and spent + cost > self._budget:
                raise StageFailed(
                    f"the next question may cost {cost:.4f} and {spent:.4f} of vision.budget "
                    f"{self._budget:g} is spent: raise vision.budget, or ask less"
                )
            self._booked += cost
            start = max(self._next, time.monotonic())
            self._next = start + self._interval
        time.sleep(max(0.0, start - time.monotonic()))

    def settle(self, bound: Usage, used: Usage | None) -> None:
        """Replace a booking by what was used, or count all of it where that is not known (None)."""
        used = bound if used is None else used
        with self._lock:
            counts = self._counts
            self._booked -= self.cost(bound) or 0.0
            self._counts = replace(
                counts,
                requests=counts.requests + 1,
                usage=counts.usage + used,
                cost=counts.cost + (self.cost(used) or 0.0),
            )

    def count(self, answers: int = 0, cached: int = 0, failures: int = 0) -> None:
        """Count questions by how they ended."""
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
    """The account of this process for a server, a model and their limits, shared by all who ask it."""
    where = (config.backend, config.url, config.model, config.key)
    return _account(where, config.budget, config.requests_per_minute, config.price)


@functools.cache
def _account(
    where: tuple[str | None, ...], budget: float | None, rate: int | None, price: Price | None
) -> Account:
    return Account(budget, rate, price)
