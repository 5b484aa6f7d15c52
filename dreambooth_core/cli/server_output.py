"""What `up` and `doctor` print on stdout: a line each for people, JSON for machines."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.cli.output import print_json
from dreambooth_core.servers.doctor import CheckResult
from dreambooth_core.servers.stack.supervisor import StackState


def show_standing(standing: StackState, login: Path, as_json: bool) -> None:
    """The parts, where each is found, what is wrong with those that do not work, and the login's file."""
    if as_json:
        print(standing.model_dump_json(indent=2), flush=True)
        return
    for part in standing.services.values():
        so_far = "" if part.phase == "ready" else f"   {part.error or part.phase}"
        print(f"{part.title:<11} {part.link}{so_far}", flush=True)
    # where it is, since what is printed is kept in logs
    print(f"{'Login':<11} to Prefect and MLflow: cat {shlex.quote(str(login))}", flush=True)


def show_findings(found: Sequence[CheckResult], as_json: bool) -> None:
    """What the doctor has seen."""
    if as_json:
        print_json([finding.model_dump() for finding in found])
        return
    for finding in found:
        print(f"{finding.level:<8} {finding.check:<9} {finding.sentence}")
