"""Prefect events, for automations and triggers.

    dreambooth.dataset.published     dreambooth.dataset.<name>: a new version of a dataset
    dreambooth.model.candidate       dreambooth.model.<name>: a version passed the gate, a person decides
    dreambooth.model.promoted        dreambooth.model.<name>: another version is champion
    dreambooth.model.rejected        dreambooth.model.<name>: a person rejected a version

The store is authoritative; an event is only a notification.
"""

from typing import TYPE_CHECKING

from prefect.client.orchestration import get_client
from prefect.events import Event, Resource
from prefect.settings import get_current_settings

from dreambooth_core.console import say
from dreambooth_core.registry.aliases import CHAMPION
from dreambooth_core.storage.records import ModelVersion, Verdict

if TYPE_CHECKING:
    from dreambooth_core.data.versions import PushResult

DATASET_PUBLISHED = "dreambooth.dataset.published"
MODEL_CANDIDATE = "dreambooth.model.candidate"
MODEL_PROMOTED = "dreambooth.model.promoted"
MODEL_REJECTED = "dreambooth.model.rejected"


def dataset_published(pushed: "PushResult") -> Event:
    """A new version of a photo set; `reference` in its payload is the value for `subject.images`."""
    payload = {
        "name": pushed.name,
        "reference": pushed.reference,
        "digest": pushed.publication.digest,
        "number": pushed.publication.number,
        "photos": pushed.publication.photos,
    }
    resource = Resource({"prefect.resource.id": f"dreambooth.dataset.{pushed.name}"})
    return Event(event=DATASET_PUBLISHED, resource=resource, payload=payload)


def model_event(event: str, name: str, version: str, sentence: str) -> Event:
    """An event about a version of a registered model, with the reason as a sentence."""
    payload = {
        "name": name,
        "version": version,
        "model": f"{name}/{version}",
        "sentence": sentence,
    }
    resource = Resource({"prefect.resource.id": f"dreambooth.model.{name}"})
    return Event(event=event, resource=resource, payload=payload)


def emit_outcome(version: ModelVersion, verdict: Verdict) -> bool:
    """Event of a run's version: promoted, or candidate; none when the gate refused it."""
    if verdict.outcome != "promote":
        return False
    event = MODEL_PROMOTED if CHAMPION in version.aliases else MODEL_CANDIDATE
    return emit(model_event(event, version.name, version.version, verdict.sentence))


def emit(event: Event) -> bool:
    """Post the event to Prefect's server; False without a server, or when it does not accept it.

    `emit_event` of Prefect posts in a thread, for which a short command does not wait.
    """
    if not get_current_settings().api.url:
        return False
    try:
        with get_client(sync_client=True) as client:
            document = event.model_dump(mode="json")
            client.request("POST", "/events", json=[document]).raise_for_status()
    except Exception as error:  # the work is done and must not fail because of its event
        say(
            f"the event {event.event} was not sent ({type(error).__name__}): check Prefect's server"
        )
        return False
    return True
