"""Tasks of registered versions: find, read, promote, reject, retrain."""

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
def use_newest_inputs(retraining: Retraining) -> Config:
    """The config with the newest dataset version and base revision, both pinned."""
    from dreambooth_core.registry import retraining as core

    return core.with_newest_inputs(retraining, open_store(retraining.config.storage))


@stage("find same inputs")
def find_same_inputs(config: Config, instance: ImageSet) -> str | None:
    """NAME/version that was trained from equal inputs; None without one."""
    from dreambooth_core.registry import retraining as core

    return core.registered_as(config, open_store(config.storage), instance)


@stage("find version")
def find_version(model: str, registry: Registry) -> RegisteredModel:
    """The version called NAME, NAME@alias or NAME/version; raises `ConfigError`."""
    from dreambooth_core.registry import register

    return register.find_version(registry.config, registry.work, model)


@stage("open version")
def open_version(found: RegisteredModel) -> VersionDetails:
    """The version with its records, verdict and the current champion."""
    from dreambooth_core.registry.listing import version_details

    return version_details(found, open_store(found.config.storage))


def assessment_config(details: VersionDetails, seeds: int | None) -> Config:
    """The version's config with automatic promotion off, and `seeds` images per prompt if given."""
    config = details.config
    gate = config.gate.model_copy(update={"auto_promote": False})
    rules = config.evaluation
    if seeds is not None:
        rules = rules.model_copy(update={"seeds": seeds})
    return config.model_copy(update={"gate": gate, "evaluation": rules})


@stage("promote approved")
def promote_approved(details: VersionDetails, answer: Approval) -> AliasState:
    """Promote the version in the approver's name; raises `ConfigError` as `dreambooth promote`."""
    from dreambooth_core.registry.promotion import PromotionRequest, promote

    request = PromotionRequest(details.version.version, answer.by, answer.reason)
    return promote(details.config, open_store(details.config.storage), request)


@stage("reject")
def reject_version(details: VersionDetails, answer: Approval) -> AliasState:
    """Log the rejection in the person's name."""
    from dreambooth_core.registry.promotion import PromotionRequest, reject

    request = PromotionRequest(details.version.version, answer.by, answer.reason)
    return reject(details.config, open_store(details.config.storage), request)
