"""A person's word on a version: the question that a flow waits with, and the answer to it."""

from itertools import count
from typing import Annotated, Literal
from uuid import UUID

from httpx import HTTPError, HTTPStatusError, TimeoutException, TransportError
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.context import FlowRunContext
from prefect.flow_runs import pause_flow_run, resume_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.settings import get_current_settings
from pydantic import Field

from dreambooth_core.config.credentials import without_password
from dreambooth_core.deadlines import SERVER_SECONDS, within
from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.registry.listing import VersionDetails
from tasks.artifacts import comparison_table

DAY = 86_400
"""Seconds."""


class Approval(RunInput):
    """The form. The browser asks for a name; whether a reason is needed, the flow says."""

    decision: Annotated[
        Literal["approve", "reject"],
        Field(
            description="Approve puts the version into service.", json_schema_extra={"position": 0}
        ),
    ]
    by: Annotated[
        str,
        Field(min_length=1, description="Who decides.", json_schema_extra={"position": 1}),
    ]
    reason: Annotated[
        str,
        Field(
            description="Why; needed to reject, and to approve what the gate did not let pass.",
            json_schema_extra={"position": 2},
        ),
    ] = ""


def asked(dossier: VersionDetails, days: int) -> Approval:
    """What a person says of the version; the flow's process ends meanwhile, if it can come back.

    A flow that a worker runs is suspended: no process waits, and the flow begins again from its top
    when it is answered. Asked again when a name or a reason is missing.
    """
    run = FlowRunContext.get()
    deployed = run is not None and run.flow_run is not None and run.flow_run.deployment_id
    wait = suspend_flow_run if deployed else pause_flow_run
    missing = ""
    for number in count(1):
        form = Approval.with_initial_data(description=_question(dossier, missing))
        answer: Approval = wait(wait_for_input=form, timeout=days * DAY, key=f"approval-{number}")
        missing = lacking(dossier, answer)
        if not missing:
            break
    return answer


def lacking(dossier: VersionDetails, answer: Approval) -> str:
    """What an answer cannot do without; empty when it has it."""
    if not answer.by.strip():
        return "Say who decides: the name stands in the version's log."
    if answer.reason.strip():
        return ""
    if answer.decision == "reject":
        return "To reject it, give a reason: it stands in the version's log."
    if dossier.verdict is None or dossier.verdict.outcome != "promote":
        return "The gate did not let it pass: to approve it all the same, give a reason."
    return ""


def answer_run(run: str, answer: Approval) -> str:
    """Let the flow run of this id or name go on with the answer; its name.

    Raises `ConfigError` when no server is configured, and when no such run waits; `StageFailed` when
    the server gives no good answer within `SERVER_SECONDS`.
    """
    url = get_current_settings().api.url
    if not url:
        raise ConfigError(
            "no Prefect server is configured: run this in the folder where `dreambooth up` was "
            "started, or set PREFECT_API_URL"
        )
    shown = without_password(url)
    try:
        return within(SERVER_SECONDS, lambda: _answered(run, answer), f"asking Prefect at {shown}")
    except (HTTPError, TimeoutError, ValueError) as error:
        raise StageFailed(f"Prefect at {shown} {_no_good(error)}") from error


def _no_good(error: Exception) -> str:
    """What an error of Prefect's client comes to, and what to do."""
    if isinstance(error, TimeoutError | TimeoutException):
        return (
            f"did not answer within {SERVER_SECONDS:.0f} s: check PREFECT_API_URL and that the server "
            "works, and see there whether the run still waits"
        )
    code = error.response.status_code if isinstance(error, HTTPStatusError) else None
    if code in (401, 403):
        return f"refused the credentials (HTTP {code}): set PREFECT_API_AUTH_STRING"
    if isinstance(error, TransportError):
        reason = type(error).__name__
        return f"does not answer ({reason}): check PREFECT_API_URL and that the server runs"
    reason = f"HTTP {code}" if code else type(error).__name__
    return (
        f"does not answer as Prefect does ({reason}): check PREFECT_API_URL, and the server's log"
    )


def _answered(run: str, answer: Approval) -> str:
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=_named(run))
    waiting = [one for one in found if one.state and one.state.is_paused()]
    if len(waiting) != 1:
        states = ", ".join(f"{one.name} is {one.state_name}" for one in found) or "there is none"
        raise ConfigError(f"not one flow run {run} waits for an answer: {states}")
    resume_flow_run(waiting[0].id, run_input=answer.model_dump())
    return waiting[0].name


def _named(run: str) -> FlowRunFilter:
    try:
        return FlowRunFilter.model_validate({"id": {"any_": [UUID(run)]}})
    except ValueError:
        return FlowRunFilter(name=FlowRunFilterName(any_=[run]))


def _question(dossier: VersionDetails, missing: str) -> str:
    """Numbers and links, in markdown."""
    verdict = dossier.verdict
    said = verdict.sentence if verdict else "The gate was never asked about it."
    rival = f"{dossier.version.name}/{dossier.champion}" if dossier.champion else "no version"
    lines = [
        f"## Put {dossier.name} into service?",
        f"**{missing}**\n" if missing else "",
        f"{said} In service now: {rival}.\n",
        # above the table, which is longer than what the form shows at once
        f"Gallery and report: {_linked(dossier.report)}\n",
        comparison_table(verdict) if verdict else "",
    ]
    return "\n".join(line for line in lines if line)


def _linked(report: str | None) -> str:
    """Only an address is one to click: a page in a store is for those who may read it."""
    if report is None:
        return "not written"
    return f"[open it in MLflow]({report})" if report.startswith("http") else f"`{report}`"
