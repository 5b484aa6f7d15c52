"""Record of a service of a stack."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM

from dreambooth_core.digests import digest_of


def nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Service:
    """How to start, check and stop a service."""

    name: str
    title: str
    link: str
    """Address shown to users."""
    ports: tuple[int, ...]
    command: tuple[str, ...]
    env: Mapping[str, str]
    """Added to the user's environment."""
    is_up: Callable[[], bool]
    """Health check; must not raise."""
    prepare: Callable[[], None] = nothing
    """Called before each start, e.g. to create tables."""
    set_up: Callable[[], None] = nothing
    """Called once it is up, before dependent services start; idempotent."""
    after: tuple[str, ...] = ()
    """Names of the services that must be ready before it is started."""
    cwd: Path | None = None
    stop_signal: int = SIGTERM
    grace: float = 20.0
    """Longest stop, in seconds."""
    seconds: float = 300.0
    """Longest start; a first start creates tables, 20 s on two idle cores."""
    children_outlive: bool = False
    """Whether its child processes are kept when it ends, such as the runs of a worker."""

    @property
    def fingerprint(self) -> str:
        """Digest of command, environment and folder; a running service with another one is replaced."""
        words = [*self.command, *(f"{name}={value}" for name, value in sorted(self.env.items()))]
        return digest_of("\0".join((*words, str(self.cwd))).encode())
