"""Registered versions: found, opened, put into service or refused."""

from dreambooth_core.config import Config
from dreambooth_core.config.flow_parameters import Registry, Retraining
from dreambooth_core.registry.aliases import AliasState
from dreambooth_core.registry.listing import VersionDetails
from dreambooth_core.registry.register import RegisteredModel
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
def find_version(model: str, place: Registry) -> RegisteredModel:
    """The version behind NAME, NAME@alias or NAME/version; raises `ConfigError`."""
    from dreambooth_core.registry import register

    return register.find_version(place.config, place.work, model)


@stage("open version")
def open_version(found: RegisteredModel) -> VersionDetails:
    """All that a decision about it needs."""
    from dreambooth_core.registry.listing import version_details

    return version_details(found, open_store(found.config.storage))


def assessed_by(dossier: VersionDetails, seeds: int | None) -> Config:
    """The version's config, by which nothing is promoted; `seeds` images per prompt, if it is given."""
    config = dossier.config
    gate = config.gate.model_copy(update={"auto_promote": False})
    rules = config.evaluation
    if seeds is not None:
        rules = rules.model_copy(update={"seeds": seeds})
    return config.model_copy(update={"gate": gate, "evaluation": rules})


@stage("put into service")
def put_into_service(dossier: VersionDetails, answer: Approval) -> AliasState:
    """In the name of who approved; raises `ConfigError` as `dreambooth promote` does."""
    from dreambooth_core.registry.promotion import PromotionRequest, promote

    wish = PromotionRequest(dossier.version.version, answer.by, answer.reason)
    return promote(dossier.config, open_store(dossier.config.storage), wish)


@stage("refuse")
def refuse(dossier: VersionDetails, answer: Approval) -> AliasState:
    """In the name of who rejected."""
    from dreambooth_core.registry.promotion import PromotionRequest, reject

    wish = PromotionRequest(dossier.version.version, answer.by, answer.reason)
    return reject(dossier.config, open_store(dossier.config.storage), wish)
