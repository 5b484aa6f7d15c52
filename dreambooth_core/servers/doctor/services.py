"""The services of `dreambooth up`, as reported by its supervisor."""

from collections.abc import Iterator

from dreambooth_core.servers.doctor import CheckResult, CheckTarget
from dreambooth_core.servers.stack import state
from dreambooth_core.servers.stack.supervisor import stack_state


def check(target: CheckTarget) -> Iterator[CheckResult]:
    """One result per service that is not ready, else one."""
    stack = stack_state(target.folder)
    if stack is None:
        yield _without_supervisor(target)
        return
    down = [service for service in stack.services.values() if service.phase != "ready"]
    for service in down:
        sentence = f"{service.title} is {service.phase}: {service.error or 'wait a moment'}"
        level = "broken" if service.phase == "given up" else "warning"
        yield CheckResult.model_validate(
            {"check": "services", "level": level, "sentence": sentence}
        )
    if not down:
        sentence = (
            f"{len(stack.services)} services are ready, supervised by process {stack.supervisor}"
        )
        yield CheckResult(check="services", level="ok", sentence=sentence)


def _without_supervisor(target: CheckTarget) -> CheckResult:
    count = len(state.marked(target.folder))
    if count:
        sentence = (
            f"{count} processes run without a supervisor: `dreambooth up` takes them over, "
            "`dreambooth down` stops them"
        )
        return CheckResult(check="services", level="broken", sentence=sentence)
    sentence = f"`dreambooth up` is not running in {target.folder}"
    return CheckResult(check="services", level="skipped", sentence=sentence)
