"""What the factory tells Prefect's server, for automations and triggers to act on.

    dreambooth.dataset.published     of dreambooth.dataset.<name>: a dataset has a new version
    dreambooth.model.candidate       of dreambooth.model.<name>: the gate let one pass, a person decides
    dreambooth.model.promoted        of dreambooth.model.<name>: another version is in service
    dreambooth.model.rejected        of dreambooth.model.<name>: a person has refused a candidate

An event is news, never the truth: whoever hears of it looks in the store.
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
    """A new version of a photo set; its payload names what a config calls it."""
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
    """News of a registered model's version, and why."""
    payload = {
        "name": name,
        "version": version,
        "model": f"{name}/{version}",
        "sentence": sentence,
    }
    resource = Resource({"prefect.resource.id": f"dreambooth.model.{name}"})
    return Event(event=event, resource=resource, payload=payload)


def tell_outcome(version: ModelVersion, verdict: Verdict) -> bool:
    """What a run has come to: promoted, or a candidate for a person; nothing when it was refused."""
    if verdict.outcome != "promote":
        return False
    news = MODEL_PROMOTED if CHAMPION in version.aliases else MODEL_CANDIDATE
    return tell(model_event(news, version.name, version.version, verdict.sentence))


def tell(event: Event) -> bool:
    """Hand the event to Prefect's server, at once; whether there is one and it took it.

    Not by `emit_event`, which leaves it to a thread that a short command does not wait for.
    """
    if not get_current_settings().api.url:
        return False
    try:
        with get_client(sync_client=True) as client:
            document = event.model_dump(mode="json")
            client.request("POST", "/events", json=[document]).raise_for_status()
    except Exception as error:  # what is done does not fail for its news
        say(f"Prefect was not told of {event.event} ({type(error).__name__}): check its server")
        return False
    return True
