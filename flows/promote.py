"""Flow `promote`: a person approves or rejects a registered version."""

from typing import cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from dreambooth_core.config.flow_parameters import Promotion
from dreambooth_core.registry.aliases import AliasState
from dreambooth_core.servers.local import local_services
from tasks.approval import wait_for_approval
from tasks.events import MODEL_PROMOTED, MODEL_REJECTED, emit, model_event
from tasks.registry import find_version, open_version, promote_approved, reject_version


@flow(name="promote", persist_result=False)
def promote_flow(promotion: Promotion) -> AliasState | None:
    """Show scores and images of a version, wait for a person's decision, and promote or reject it."""
    found = find_version(promotion.model, promotion.registry)
    with local_services(found.config):
        details = open_version(found)
        if details.champion == found.version:
            message = f"{details.name} is champion"
            unchanged: State[None] = Completed(name="Unchanged", message=message)
            return cast(None, unchanged)
        answer = wait_for_approval(details, promotion.days)
        if answer.decision == "reject":
            reject_version(details, answer)
            message = f"{answer.by} rejected {details.name}: {answer.reason}"
            emit(model_event(MODEL_REJECTED, found.name, found.version, message))
            rejected: State[None] = Completed(name="Rejected", message=message)
            return cast(None, rejected)
        state = promote_approved(details, answer)
        message = f"{answer.by} promoted {details.name} to champion"
        emit(model_event(MODEL_PROMOTED, found.name, found.version, message))
        return state
