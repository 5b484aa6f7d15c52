"""Approval of a version by a person: the form that a flow waits for, and its answer."""

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
from dreambooth_core.reports.markdown import comparison_table

DAY = 86_400
"""Seconds."""


class Approval(RunInput):
    """Form of an approval. The form requires a name; the flow checks whether a reason is required."""

    decision: Annotated[
        Literal["approve", "reject"],
        Field(description="Approve makes the version champion.", json_schema_extra={"position": 0}),
    ]
    by: Annotated[
        str,
        Field(min_length=1, description="Who decides.", json_schema_extra={"position": 1}),
    ]
    reason: Annotated[
        str,
        Field(
            description="Required to reject, and to approve a version that the gate did not pass.",
            json_schema_extra={"position": 2},
        ),
    ] = ""


def wait_for_approval(details: VersionDetails, days: int) -> Approval:
    """A person's decision on the version; the form is shown again while a name or reason is missing.

    A deployed flow is suspended: its process ends, and the flow restarts from its top once the form
    is answered.
    """
    run = FlowRunContext.get()
    deployed = run is not None and run.flow_run is not None and run.flow_run.deployment_id
    wait = suspend_flow_run if deployed else pause_flow_run
    missing = ""
    for number in count(1):
        form = Approval.with_initial_data(description=_description(details, missing))
        answer: Approval = wait(wait_for_input=form, timeout=days * DAY, key=f"approval-{number}")
        missing = missing_input(details, answer)
        if not missing:
            break
    return answer


def missing_input(details: VersionDetails, answer: Approval) -> str:
    """What is missing in an answer, as a sentence; empty if it is complete."""
    if not answer.by.strip():
        return "Give a name for the version's log."
    if answer.reason.strip():
        return ""
    if answer.decision == "reject":
        return "Give a reason for the rejection, for the version's log."
    if details.verdict is None or details.verdict.outcome != "promote":
        return "Give a reason: the gate did not pass this version."
    return ""


def answer_run(run: str, answer: Approval) -> str:
    """Resume the paused flow run of this id or name with the answer; the run's name.

    Raises `ConfigError` when no server is configured or no such run waits; `StageFailed` when the
    server gives no valid answer within `SERVER_SECONDS`.
    """
    url = get_current_settings().api.url
    if not url:
        raise ConfigError(
            "no Prefect server is configured: run this in the folder where `dreambooth up` was "
            "started, or set PREFECT_API_URL"
        )
    shown = without_password(url)
    try:
        return within(SERVER_SECONDS, lambda: _resume(run, answer), f"asking Prefect at {shown}")
    except (HTTPError, TimeoutError, ValueError) as error:
        raise StageFailed(f"Prefect at {shown} {_explanation(error)}") from error


def _explanation(error: Exception) -> str:
    """Cause and remedy of an error of Prefect's client."""
    if isinstance(error, TimeoutError | TimeoutException):
        return (
            f"did not answer within {SERVER_SECONDS:.0f} s: check PREFECT_API_URL and the server, "
            "and whether the run is still paused"
        )
    code = error.response.status_code if isinstance(error, HTTPStatusError) else None
    if code in (401, 403):
        return f"refused the credentials (HTTP {code}): set PREFECT_API_AUTH_STRING"
    if isinstance(error, TransportError):
        reason = type(error).__name__
        return f"does not answer ({reason}): check PREFECT_API_URL and that the server runs"
    reason = f"HTTP {code}" if code else type(error).__name__
    return f"gives no valid answer ({reason}): check PREFECT_API_URL, and the server's log"


def _resume(run: str, answer: Approval) -> str:
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=_named(run))
    waiting = [one for one in found if one.state and one.state.is_paused()]
    if len(waiting) != 1:
        states = ", ".join(f"{one.name} is {one.state_name}" for one in found) or "no such run"
        raise ConfigError(f"expected one paused flow run {run}: {states}")
    resume_flow_run(waiting[0].id, run_input=answer.model_dump())
    return waiting[0].name


def _named(run: str) -> FlowRunFilter:
    try:
        return FlowRunFilter.model_validate({"id": {"any_": [UUID(run)]}})
    except ValueError:
        return FlowRunFilter(name=FlowRunFilterName(any_=[run]))


def _description(details: VersionDetails, missing: str) -> str:
    """Verdict, comparison and report link in Markdown."""
    verdict = details.verdict
    sentence = verdict.sentence if verdict else "The gate has no verdict on it."
    champion = f"{details.version.name}/{details.champion}" if details.champion else "none"
    lines = [
        f"## Promote {details.name} to champion?",
        f"**{missing}**\n" if missing else "",
        f"{sentence} Current champion: {champion}.\n",
        # before the table, which exceeds the form's visible area
        f"Gallery and report: {_link(details.report)}\n",
        comparison_table(verdict) if verdict else "",
    ]
    return "\n".join(line for line in lines if line)


def _link(report: str | None) -> str:
    """Markdown link of an http address; a store's URI as code, since a browser cannot open it."""
    if report is None:
        return "not written"
    return f"[open it in MLflow]({report})" if report.startswith("http") else f"`{report}`"
