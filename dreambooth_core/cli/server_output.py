"""Output of `up` and `doctor`: one line per service or check, or JSON."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.cli.output import print_json
from dreambooth_core.servers.doctor import CheckResult
from dreambooth_core.servers.stack.supervisor import StackState


def show_stack(state: StackState, login: Path, as_json: bool) -> None:
    """Services with their URLs and errors, and the path of the login file."""
    if as_json:
        print(state.model_dump_json(indent=2), flush=True)
        return
    for service in state.services.values():
        problem = "" if service.phase == "ready" else f"   {service.error or service.phase}"
        print(f"{service.title:<11} {service.link}{problem}", flush=True)
    # the path only, as output is kept in logs
    print(f"{'Login':<11} to Prefect and MLflow: cat {shlex.quote(str(login))}", flush=True)


def show_findings(found: Sequence[CheckResult], as_json: bool) -> None:
    """One line per check."""
    if as_json:
        print_json([finding.model_dump() for finding in found])
        return
    for finding in found:
        print(f"{finding.level:<8} {finding.check:<9} {finding.sentence}")
