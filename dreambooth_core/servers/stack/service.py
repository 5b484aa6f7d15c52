"""One part of a stack, as a record."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM

from dreambooth_core.digests import digest_of


def nothing() -> None:
    """No more to do."""


@dataclass(frozen=True)
class Service:
    """How to start a server, how to see that it works, and what is to be done around it."""

    name: str
    title: str
    link: str
    """Where a person finds it."""
    ports: tuple[int, ...]
    command: tuple[str, ...]
    env: Mapping[str, str]
    """On top of the user's environment; secrets only where they are needed."""
    answers: Callable[[], bool]
    """Whether it does its work; must not raise."""
    make: Callable[[], None] = nothing
    """What must lie there before it is started, such as tables."""
    settle: Callable[[], None] = nothing
    """What must be done once it answers, before others rely on it. May be done again."""
    after: tuple[str, ...] = ()
    """The parts that must work before it is started."""
    cwd: Path | None = None
    stop_signal: int = SIGTERM
    grace: float = 20.0
    """Seconds that it may take to stop."""
    seconds: float = 300.0
    """That it may take to come up. A first start makes its tables: 20 s on two free cores."""
    leaves_work: bool = False
    """Whether what it has started goes on without it and is worth more than a clean table."""

    @property
    def fingerprint(self) -> str:
        """Of what a running one must have been started with to be taken over as it is."""
        words = [*self.command, *(f"{name}={value}" for name, value in sorted(self.env.items()))]
        return digest_of("\0".join((*words, str(self.cwd))).encode())
