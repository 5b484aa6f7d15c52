"""Registered versions: found, opened, put into service or refused."""

from dreambooth_core.config import Config
from dreambooth_core.config.flow_parameters import Place, Retraining
from dreambooth_core.registry.aliases import Standing
from dreambooth_core.registry.listing import Dossier
from dreambooth_core.registry.register import Found
from dreambooth_core.storage.records import ImageSet
from dreambooth_core.storage.stores import open_store
from tasks.approval import Approval
from tasks.stage import stage


@stage("renew inputs")
def renew_inputs(retraining: Retraining) -> Config:
    """The newest dataset version and base revision, written down."""
    from dreambooth_core.registry import retraining as core

    return core.renewed(retraining, open_store(retraining.config.storage))


@stage("find twin")
def find_twin(config: Config, instance: ImageSet) -> str | None:
    """NAME/version that was trained from just these inputs."""
    from dreambooth_core.registry import retraining as core

    return core.registered_as(config, open_store(config.storage), instance)


@stage("find version")
def find_version(model: str, place: Place) -> Found:
    """The version behind NAME, NAME@alias or NAME/version; raises `ConfigError`."""
    from dreambooth_core.registry import register

    return register.find_version(place.config, place.work, model)


@stage("open version")
def open_version(found: Found) -> Dossier:
    """All that a decision about it needs."""
    from dreambooth_core.registry.listing import dossier_of

    return dossier_of(found, open_store(found.config.storage))


def assessed_by(dossier: Dossier, seeds: int | None) -> Config:
    """The version's config, by which nothing is promoted; `seeds` images per prompt, if it is given."""
    config = dossier.config
    gate = config.gate.model_copy(update={"automatic": False})
    rules = config.evaluation
    if seeds is not None:
        rules = rules.model_copy(update={"seeds": seeds})
    return config.model_copy(update={"gate": gate, "evaluation": rules})


@stage("put into service")
def put_into_service(dossier: Dossier, answer: Approval) -> Standing:
    """In the name of who approved; raises `ConfigError` as `dreambooth promote` does."""
    from dreambooth_core.registry.promotion import Wish, promote

    wish = Wish(dossier.version.version, answer.by, answer.reason)
    return promote(dossier.config, open_store(dossier.config.storage), wish)


@stage("refuse")
def refuse(dossier: Dossier, answer: Approval) -> Standing:
    """In the name of who rejected."""
    from dreambooth_core.registry.promotion import Wish, reject

    wish = Wish(dossier.version.version, answer.by, answer.reason)
    return reject(dossier.config, open_store(dossier.config.storage), wish)
