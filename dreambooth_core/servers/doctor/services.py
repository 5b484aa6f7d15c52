"""The parts of `dreambooth up`, as its supervisor sees them."""

from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckResult, CheckTarget
from dreambooth_core.servers.stack import state
from dreambooth_core.servers.stack.supervisor import stack_state


def check(site: CheckTarget) -> Iterator[CheckResult]:
    """One finding per part that does not work; else one in all."""
    told = stack_state(site.folder)
    if told is None:
        yield _without_supervisor(site)
        return
    down = [part for part in told.services.values() if part.phase != "ready"]
    for part in down:
        sentence = f"{part.title} is {part.phase}: {part.error or 'wait a moment'}"
        level = "broken" if part.phase == "given up" else "warning"
        yield CheckResult.model_validate(
            {"check": "services", "level": level, "sentence": sentence}
        )
    if not down:
        sentence = f"{len(told.services)} parts work, supervised by process {told.supervisor}"
        yield CheckResult(check="services", level="ok", sentence=sentence)


def _without_supervisor(site: CheckTarget) -> CheckResult:
    left = len(state.marked(site.folder))
    if left:
        sentence = (
            f"{left} processes are up and nobody supervises them: `dreambooth up` takes them over, "
            "`dreambooth down` stops them"
        )
        return CheckResult(check="services", level="broken", sentence=sentence)
    sentence = f"`dreambooth up` is not running in {site.folder}"
    return CheckResult(check="services", level="skipped", sentence=sentence)
