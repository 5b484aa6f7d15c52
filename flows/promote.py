"""A candidate in; a champion out, or a refusal, by a person's word."""

from typing import cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from dreambooth_core.config.flow_parameters import Promotion
from dreambooth_core.registry.aliases import AliasState
from dreambooth_core.servers.local import local_services
from tasks.approval import asked
from tasks.events import MODEL_PROMOTED, MODEL_REJECTED, model_event, tell
from tasks.registry import find_version, open_version, put_into_service, refuse


@flow(name="promote", persist_result=False)
def promote_flow(promotion: Promotion) -> AliasState | None:
    """Show a person the version's numbers and images, wait for a word, and do what it says."""
    found = find_version(promotion.model, promotion.registry)
    with local_services(found.config):
        dossier = open_version(found)
        if dossier.champion == found.version:
            there: State[None] = Completed(name="Unchanged", message=f"{dossier.name} is champion")
            return cast(None, there)
        answer = asked(dossier, promotion.days)
        if answer.decision == "reject":
            refuse(dossier, answer)
            said = f"{answer.by} rejected {dossier.name}: {answer.reason}"
            tell(model_event(MODEL_REJECTED, found.name, found.version, said))
            rejected: State[None] = Completed(name="Rejected", message=said)
            return cast(None, rejected)
        standing = put_into_service(dossier, answer)
        said = f"{answer.by} put {dossier.name} into service"
        tell(model_event(MODEL_PROMOTED, found.name, found.version, said))
        return standing
