"""Main memory that is left for the servers and a run."""

from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckResult, CheckTarget

LEAST, COMFORTABLE = 1.0, 6.0
"""GB available: the servers alone; and a small run beside them."""


def check(site: CheckTarget) -> Iterator[CheckResult]:
    """One finding."""
    import psutil

    free = psutil.virtual_memory().available / 1e9
    if free < LEAST:
        sentence = (
            f"{free:.1f} GB of memory are available, less than {LEAST:.0f}: end other programs"
        )
        yield CheckResult(check="memory", level="broken", sentence=sentence)
    elif free < COMFORTABLE:
        sentence = (
            f"{free:.1f} GB of memory are available; a run wants {COMFORTABLE:.0f}: end others"
        )
        yield CheckResult(check="memory", level="warning", sentence=sentence)
    else:
        sentence = f"{free:.0f} GB of memory are available"
        yield CheckResult(check="memory", level="ok", sentence=sentence)
