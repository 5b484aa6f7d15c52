"""Promotion, rollback and rejection of model versions, by the gate or by a named person.

A verdict compares a version with one rival: it moves no alias once another version is champion, nor
after a person has rolled the version back or rejected it.
"""

from dataclasses import dataclass

from dreambooth_core import console
from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from dreambooth_core.evaluation.gate import ScoredModel, override, overruled
from dreambooth_core.registry import model_card
from dreambooth_core.registry.aliases import Action, AliasChange, AliasLog, AliasState
from dreambooth_core.registry.provenance import Provenance, RunInputs, read_provenance, run_inputs
from dreambooth_core.registry.register import alias_log_of, check_stored, synced_state
from dreambooth_core.storage.blobs import get_record
from dreambooth_core.storage.records import ModelVersion, Verdict, Weights, utc_now
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.tracking.mlflow import has_run, has_version

GATE = "the gate"
"""Name in the log for promotions by the gate."""


@dataclass(frozen=True)
class PromotionRequest:
    """A person's request to promote, roll back or reject a version; `ConfigError` for a blank name."""

    version: str
    by: str
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.by.strip():
            raise ConfigError(
                f"version {self.version} needs the name of a person for its log: give a name"
            )


def champion_of(config: Config, store: Store) -> ScoredModel | None:
    """The champion of `config.name`; None without one."""
    log = alias_log_of(config, store)
    if log is None:
        return None
    return _scored_model(config, log, synced_state(config, log).champion)


def champion_inputs(config: Config, store: Store) -> RunInputs | None:
    """Records that the champion was made from; None without a champion."""
    log = alias_log_of(config, store)
    version = synced_state(config, log).champion if log else None
    return run_inputs(store, read_provenance(log, version)) if log and version else None


def rival_of(config: Config, store: Store, weights: Weights) -> ScoredModel | None:
    """The version that these weights are compared with; None for the base.

    It is the champion. For the champion's own weights it is the previous champion, so that a repeated
    run finds the same verdict.
    """
    log = alias_log_of(config, store)
    if log is None:
        return None
    return _scored_model(config, log, _rival(log, synced_state(config, log), weights.digest))


def apply_verdict(
    config: Config, store: Store, version: ModelVersion, verdict: Verdict
) -> tuple[ModelVersion, bool]:
    """Record the gate's verdict on a version, and promote the version if the verdict allows it.

    With `gate.auto_promote` off, only a person promotes. Gives the version with its aliases, and
    whether nothing had to be done.
    """
    log = _log(config, store)
    recorded = verdict_of(log, version.version)
    known = recorded is not None and recorded.digest == verdict.digest
    if not known:
        _publish_verdict(config, log, version.version, verdict)
        # last: a stored verdict counts as published
        store.put(_verdict_key(log, version.version), verdict.model_dump_json().encode())
    before = log.state
    if verdict.outcome == "promote" and config.gate.auto_promote:
        _promote_by_gate(log, version.version, verdict)
    state = synced_state(config, log)
    aliases = state.aliases_of(version.version)
    return version.model_copy(update={"aliases": aliases}), known and state == before


def promote(config: Config, store: Store, request: PromotionRequest) -> AliasState:
    """Make a version champion; no change if it is.

    Raises `ConfigError` when the gate's verdict does not allow it and no reason is given, and, with
    or without a reason, when the gate has no verdict; `StorageError` when its weights are missing.
    """
    log = _log(config, store)
    provenance, verdict = read_provenance(log, request.version), verdict_of(log, request.version)
    check_stored(store, run_inputs(store, provenance).weights)

    def propose(state: AliasState) -> AliasChange | None:
        if state.champion == request.version:
            return None
        objection = _objection(log, state, provenance, verdict)
        if verdict is None:
            raise ConfigError(
                f"{log.name}/{request.version} is not promoted: {objection}, so its images were never "
                "measured; run its config again, or the deployment `assess`"
            )
        if objection and not request.reason.strip():
            raise ConfigError(
                f"{log.name}/{request.version} is not promoted: {objection}; give --reason to promote "
                "it in your name"
            )
        decision = override(store, verdict, request.by, request.reason) if objection else verdict
        return AliasChange(
            action="override" if objection else "promote",
            version=request.version,
            by=request.by,
            when=utc_now(),
            reason=request.reason,
            verdict=decision.digest,
        )

    log.append(propose)
    _publish_override(config, log, request.version, verdict)
    return synced_state(config, log)


def rollback(config: Config, store: Store, request: PromotionRequest) -> AliasState:
    """Undo the promotion of the champion `request.version`: the previous champion is restored.

    No change when that was the last change. Raises `ConfigError` when the version is not champion,
    has no predecessor, or the predecessor was deleted in MLflow; `StorageError` when the
    predecessor's weights are missing.
    """
    log, client = _log(config, store), tracking.open_client(config)

    def propose(state: AliasState) -> AliasChange | None:
        if state.champion != request.version:
            last = _last_decision(log, request.version)
            if last and last.action == "rollback":
                return None
            raise ConfigError(
                f"{log.name}/{request.version} is not the champion: there is nothing to roll back"
            )
        if state.previous is None:
            raise ConfigError(
                f"{log.name}/{request.version} is the first champion: there is none to roll back to"
            )
        if not has_version(client, log.name, state.previous):
            raise ConfigError(
                f"{log.name}/{state.previous}, the previous champion, was deleted in MLflow: "
                "promote another version instead"
            )
        before = run_inputs(store, read_provenance(log, state.previous))
        check_stored(store, before.weights)
        return _change("rollback", request)

    log.append(propose)
    return synced_state(config, log)


def reject(config: Config, store: Store, request: PromotionRequest) -> AliasState:
    """Log a person's rejection of a version: the gate alone no longer promotes it.

    Raises `ConfigError` without a reason, and for the champion.
    """
    if not request.reason.strip():
        raise ConfigError(
            f"a rejection of {config.name}/{request.version} needs a reason for its log: give a reason"
        )
    log = _log(config, store)
    read_provenance(log, request.version)

    def propose(state: AliasState) -> AliasChange | None:
        if state.champion == request.version:
            raise ConfigError(
                f"{log.name}/{request.version} is the champion: use `dreambooth rollback`"
            )
        last = _last_decision(log, request.version)
        if last and (last.action, last.reason) == ("reject", request.reason):
            return None
        return _change("reject", request)

    log.append(propose)
    return synced_state(config, log)


def alias_state(config: Config, store: Store) -> AliasState:
    """Aliases of the model by the log, after MLflow was synchronized with it."""
    return _log(config, store).sync(tracking.open_client(config))


def verdict_of(log: AliasLog, version: str) -> Verdict | None:
    """The gate's last verdict on a version; None without one."""
    return get_record(log.store, _verdict_key(log, version), Verdict)


def _promote_by_gate(log: AliasLog, version: str, verdict: Verdict) -> None:
    provenance = read_provenance(log, version)

    def propose(state: AliasState) -> AliasChange | None:
        if state.champion == version:
            return None
        objection = _objection(log, state, provenance, verdict) or _withdrawn(log, version)
        if objection:
            console.say(f"{log.name}/{version} is not promoted: {objection}")
            return None
        return AliasChange(
            action="promote",
            version=version,
            by=GATE,
            when=utc_now(),
            reason=verdict.sentence,
            verdict=verdict.digest,
        )

    log.append(propose)


def _objection(
    log: AliasLog, state: AliasState, provenance: Provenance, verdict: Verdict | None
) -> str:
    """Why the gate's verdict does not allow a promotion; empty if it does."""
    if verdict is None:
        return "the gate has no verdict on it"
    if verdict.outcome != "promote":
        return f"the gate's verdict is {verdict.outcome}: {verdict.sentence.rstrip('.')}"
    rival = _rival(log, state, provenance.weights_digest)
    rival_name = "base" if rival is None else f"{log.name}/{rival}"
    if verdict.against != rival_name:
        return (
            f"the gate compared it with {verdict.against}, but it would replace {rival_name}: "
            "run its config again"
        )
    return ""


def _withdrawn(log: AliasLog, version: str) -> str:
    """Who rolled the version back or rejected it since its last promotion; empty if no one did."""
    last = _last_decision(log, version)
    if last and last.action in ("rollback", "reject"):
        action = "rolled it back" if last.action == "rollback" else "rejected it"
        return f"{last.by} {action}: a person must promote it"
    return ""


def _last_decision(log: AliasLog, version: str) -> AliasChange | None:
    """The last change of a version other than its registration."""
    decisions = [
        change
        for change in log.history()
        if change.version == version and change.action != "register"
    ]
    return decisions[-1] if decisions else None


def _rival(log: AliasLog, state: AliasState, weights: str) -> str | None:
    champion = state.champion
    if champion is not None and read_provenance(log, champion).weights_digest == weights:
        return state.previous
    return champion


def _scored_model(config: Config, log: AliasLog, version: str | None) -> ScoredModel | None:
    if version is None:
        return None
    provenance = read_provenance(log, version)
    local = {name: getattr(config, name) for name in ("paths", "tracking", "storage")}
    return ScoredModel(
        name=f"{log.name}/{version}",
        config=provenance.config.model_copy(update=local),
        weights=run_inputs(log.store, provenance).weights,
    )


def _publish_override(config: Config, log: AliasLog, version: str, verdict: Verdict | None) -> None:
    """Publish a person's override of the verdict, if it is the version's last decision in the log.

    Called after the log was written, and on each repeated promotion, so that a crash in between is
    repaired.
    """
    last = _last_decision(log, version)
    if verdict is None or last is None or last.action != "override":
        return
    # a later verdict of the gate is not the one that was overridden
    if overruled(verdict, last.by, last.reason).digest == last.verdict:
        overridden = override(log.store, verdict, last.by, last.reason)
        _publish_verdict(config, log, version, overridden)


def _publish_verdict(config: Config, log: AliasLog, version: str, verdict: Verdict) -> None:
    """Write the verdict to the version's and its run's tags in MLflow, and to the model card."""
    client = tracking.open_client(config)
    provenance = read_provenance(log, version)
    tags = {
        "dreambooth.verdict": verdict.outcome,
        "dreambooth.verdict_sentence": verdict.sentence,
        "dreambooth.verdict_against": verdict.against,
        "dreambooth.verdict_digest": verdict.digest,
        "dreambooth.verdict_record": verdict.uri,
    }
    run = has_run(client, provenance.run_id)
    for name, value in tags.items():
        client.set_model_version_tag(log.name, version, name, value)
        if run:
            client.set_tag(provenance.run_id, name, value)
    # the champion's difference from itself with other seeds is a property of the champion
    champion = verdict.against.removeprefix(f"{log.name}/")
    if verdict.noise and has_version(client, log.name, champion):
        for metric, width in verdict.noise.items():
            name = f"dreambooth.noise.{metric}"
            client.set_model_version_tag(log.name, champion, name, f"{width:.6f}")
    card = model_card.CardInputs(provenance, run_inputs(log.store, provenance), verdict)
    model_card.publish(client, log, card)


def _verdict_key(log: AliasLog, version: str) -> str:
    return f"{log.prefix}/verdicts/{version}.json"


def _log(config: Config, store: Store) -> AliasLog:
    log = alias_log_of(config, store)
    if log is None:
        raise ConfigError(f"no registered model {config.name}: run its config first")
    return log


def _change(action: Action, request: PromotionRequest) -> AliasChange:
    """A person's entry for the log."""
    return AliasChange(
        action=action,
        version=request.version,
        by=request.by,
        when=utc_now(),
        reason=request.reason,
    )
