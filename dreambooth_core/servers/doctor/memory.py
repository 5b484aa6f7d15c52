"""Available main memory."""

from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckResult, CheckTarget

MINIMUM, RECOMMENDED = 1.0, 6.0
"""GB: for the servers; for the servers and a small run."""


def check(target: CheckTarget) -> Iterator[CheckResult]:
    """One result."""
    import psutil

    free = psutil.virtual_memory().available / 1e9
    if free < MINIMUM:
        sentence = (
            f"{free:.1f} GB of memory are available, less than {MINIMUM:.0f}: end other programs"
        )
        yield CheckResult(check="memory", level="broken", sentence=sentence)
    elif free < RECOMMENDED:
        sentence = (
            f"{free:.1f} GB of memory are available; a run needs about {RECOMMENDED:.0f}: end other "
            "programs"
        )
        yield CheckResult(check="memory", level="warning", sentence=sentence)
    else:
        sentence = f"{free:.0f} GB of memory are available"
        yield CheckResult(check="memory", level="ok", sentence=sentence)
