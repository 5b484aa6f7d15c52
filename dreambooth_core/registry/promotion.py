"""Who goes into service: by the gate's word, or by a named person's against it.

A verdict is about two versions. Once another one is in service it says nothing any more, and so it
moves no alias; nor does it put back what a person has taken back.
"""

from dataclasses import dataclass

from dreambooth_core import console
from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError
from dreambooth_core.evaluation.gate import ScoredModel, override, overruled
from dreambooth_core.registry import model_card
from dreambooth_core.registry.aliases import AliasChange, AliasLog, AliasState
from dreambooth_core.registry.provenance import Provenance, RunInputs, read_provenance, run_inputs
from dreambooth_core.registry.register import book_of, check_stored, followed
from dreambooth_core.storage.blobs import get_record
from dreambooth_core.storage.records import ModelVersion, Verdict, Weights, utc_now
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking import mlflow as tracking
from dreambooth_core.tracking.mlflow import has_run, has_version

GATE = "the gate"
"""Who promotes when no person does."""


@dataclass(frozen=True)
class PromotionRequest:
    """What a person wants of a model's version; raises `ConfigError` for a blank name."""

    version: str
    by: str
    reason: str = ""

    def __post_init__(self) -> None:
        if not self.by.strip():
            raise ConfigError(f"who moves version {self.version} stands in its log: give a name")


def champion_of(config: Config, store: Store) -> ScoredModel | None:
    """The version of `config.name` that is in service; None when none is."""
    book = book_of(config, store)
    if book is None:
        return None
    return _contender(config, book, followed(config, book).champion)


def champion_inputs(config: Config, store: Store) -> RunInputs | None:
    """What that version was made of; None when none is in service."""
    book = book_of(config, store)
    version = followed(config, book).champion if book else None
    return run_inputs(store, read_provenance(book, version)) if book and version else None


def rival_of(config: Config, store: Store, weights: Weights) -> ScoredModel | None:
    """The version that these weights have to beat; None when it is the base.

    The champion; but for the champion's own weights, when their run is run again, the one that
    they replaced: the same verdict is found then.
    """
    book = book_of(config, store)
    if book is None:
        return None
    return _contender(config, book, _rival(book, followed(config, book), weights.digest))


def settle(
    config: Config, store: Store, version: ModelVersion, verdict: Verdict
) -> tuple[ModelVersion, bool]:
    """Let the version say what the gate said, and put it into service if it said so.

    With `gate.auto_promote` off, a person does that. The version comes back with its aliases, and
    whether all of it was done before.
    """
    book = _book(config, store)
    told = verdict_of(book, version.version)
    known = told is not None and told.digest == verdict.digest
    if not known:
        _tell(config, book, version.version, verdict)
        # last: what is kept counts as told
        store.put(_verdict_key(book, version.version), verdict.model_dump_json().encode())
    before = book.standing
    if verdict.outcome == "promote" and config.gate.auto_promote:
        _promote_by_gate(book, version.version, verdict)
    standing = followed(config, book)
    aliases = standing.of(version.version)
    return version.model_copy(update={"aliases": aliases}), known and standing == before


def promote(config: Config, store: Store, wish: PromotionRequest) -> AliasState:
    """Put a version into service; one that is there already stays.

    Raises `ConfigError` when the gate does not stand behind it and no reason is given, and, reason
    or not, when nothing is known of its images; `StorageError` when its weights are gone.
    """
    book = _book(config, store)
    origin, verdict = read_provenance(book, wish.version), verdict_of(book, wish.version)
    check_stored(store, run_inputs(store, origin).weights)

    def propose(standing: AliasState) -> AliasChange | None:
        if standing.champion == wish.version:
            return None
        doubt = _doubt(book, standing, origin, verdict)
        if verdict is None:
            raise ConfigError(
                f"{book.name}/{wish.version} is not promoted: {doubt}, so nothing is known of its "
                "images; run its config again, or the deployment `assess`"
            )
        if doubt and not wish.reason.strip():
            raise ConfigError(
                f"{book.name}/{wish.version} is not promoted: {doubt}; give --reason to do it "
                "all the same, in your name"
            )
        word = override(store, verdict, wish.by, wish.reason) if doubt else verdict
        return AliasChange(
            action="override" if doubt else "promote",
            version=wish.version,
            by=wish.by,
            when=utc_now(),
            reason=wish.reason,
            verdict=word.digest,
        )

    book.enter(propose)
    _tell_word(config, book, wish.version, verdict)
    return followed(config, book)


def rollback(config: Config, store: Store, wish: PromotionRequest) -> AliasState:
    """Take the champion `wish.version` out of service: the one before it is champion again.

    Nothing happens when just that has been done. Raises `ConfigError` when the version is not in
    service, or there was none before it, or that one was deleted in MLflow; `StorageError` when its
    weights are gone.
    """
    book, client = _book(config, store), tracking.open_client(config)

    def propose(standing: AliasState) -> AliasChange | None:
        if standing.champion != wish.version:
            last = _last_move(book, wish.version)
            if last and last.action == "rollback":
                return None
            raise ConfigError(
                f"{book.name}/{wish.version} is not the champion: nothing to take back"
            )
        if standing.previous is None:
            raise ConfigError(
                f"{book.name}/{wish.version} is the first champion: there is none to go back to"
            )
        if not has_version(client, book.name, standing.previous):
            raise ConfigError(
                f"{book.name}/{standing.previous}, which would be champion again, was deleted in "
                "MLflow: promote another version instead"
            )
        before = run_inputs(store, read_provenance(book, standing.previous))
        check_stored(store, before.weights)
        return AliasChange(
            action="rollback", version=wish.version, by=wish.by, when=utc_now(), reason=wish.reason
        )

    book.enter(propose)
    return followed(config, book)


def reject(config: Config, store: Store, wish: PromotionRequest) -> AliasState:
    """Write down that a person refuses a version: the gate alone puts it into service no more.

    Raises `ConfigError` without a reason, and for the version that is in service.
    """
    if not wish.reason.strip():
        raise ConfigError(f"why {config.name}/{wish.version} is rejected stands in its log: say it")
    book = _book(config, store)
    read_provenance(book, wish.version)

    def propose(standing: AliasState) -> AliasChange | None:
        if standing.champion == wish.version:
            raise ConfigError(
                f"{book.name}/{wish.version} is the champion: `dreambooth rollback` takes it back"
            )
        last = _last_move(book, wish.version)
        if last and (last.action, last.reason) == ("reject", wish.reason):
            return None
        return AliasChange(
            action="reject", version=wish.version, by=wish.by, when=utc_now(), reason=wish.reason
        )

    book.enter(propose)
    return followed(config, book)


def alias_state(config: Config, store: Store) -> AliasState:
    """Who stands for the model, with MLflow put right if it says otherwise."""
    return _book(config, store).follow(tracking.open_client(config))


def verdict_of(book: AliasLog, version: str) -> Verdict | None:
    """The gate's own last word about a version; None when it was not asked."""
    return get_record(book.store, _verdict_key(book, version), Verdict)


def _promote_by_gate(book: AliasLog, version: str, verdict: Verdict) -> None:
    origin = read_provenance(book, version)

    def propose(standing: AliasState) -> AliasChange | None:
        if standing.champion == version:
            return None
        doubt = _doubt(book, standing, origin, verdict) or _taken_back(book, version)
        if doubt:
            console.say(f"{book.name}/{version} is not promoted: {doubt}")
            return None
        return AliasChange(
            action="promote",
            version=version,
            by=GATE,
            when=utc_now(),
            reason=verdict.sentence,
            verdict=verdict.digest,
        )

    book.enter(propose)


def _doubt(
    book: AliasLog, standing: AliasState, origin: Provenance, verdict: Verdict | None
) -> str:
    """Why the gate does not stand behind a promotion; empty when it does."""
    if verdict is None:
        return "the gate was never asked about it"
    if verdict.outcome != "promote":
        return f"the gate said {verdict.outcome}: {verdict.sentence.rstrip('.')}"
    rival = _rival(book, standing, origin.weights_digest)
    now_against = "base" if rival is None else f"{book.name}/{rival}"
    if verdict.against != now_against:
        return (
            f"the gate compared it with {verdict.against}, but it would replace {now_against}: "
            "run its config again"
        )
    return ""


def _taken_back(book: AliasLog, version: str) -> str:
    """Empty, or who took the version out of service, or refused it, since it was promoted last."""
    last = _last_move(book, version)
    if last and last.action in ("rollback", "reject"):
        did = "took it back" if last.action == "rollback" else "rejected it"
        return f"{last.by} {did}: a person must promote it"
    return ""


def _last_move(book: AliasLog, version: str) -> AliasChange | None:
    """The last change about a version, its registration aside."""
    about = [change for change in book.history() if change.version == version]
    moves = [change for change in about if change.action != "register"]
    return moves[-1] if moves else None


def _rival(book: AliasLog, standing: AliasState, weights: str) -> str | None:
    champion = standing.champion
    if champion is not None and read_provenance(book, champion).weights_digest == weights:
        return standing.previous
    return champion


def _contender(config: Config, book: AliasLog, version: str | None) -> ScoredModel | None:
    if version is None:
        return None
    origin = read_provenance(book, version)
    places = {name: getattr(config, name) for name in ("paths", "tracking", "storage")}
    return ScoredModel(
        name=f"{book.name}/{version}",
        config=origin.config.model_copy(update=places),
        weights=run_inputs(book.store, origin).weights,
    )


def _tell_word(config: Config, book: AliasLog, version: str, verdict: Verdict | None) -> None:
    """Let the version say that a person overruled the gate, if that is its log's last word.

    After the log, so that nothing is said that did not happen; and whenever somebody promotes it again,
    so that it is said in the end, whoever was killed in between.
    """
    last = _last_move(book, version)
    if verdict is None or last is None or last.action != "override":
        return
    # the gate may have been asked again since, of which the person said nothing
    if overruled(verdict, last.by, last.reason).digest == last.verdict:
        _tell(config, book, version, override(book.store, verdict, last.by, last.reason))


def _tell(config: Config, book: AliasLog, version: str, verdict: Verdict) -> None:
    """Say it in MLflow, to the version and to its run, and on the card."""
    client = tracking.open_client(config)
    origin = read_provenance(book, version)
    tags = {
        "dreambooth.verdict": verdict.outcome,
        "dreambooth.verdict_sentence": verdict.sentence,
        "dreambooth.verdict_against": verdict.against,
        "dreambooth.verdict_digest": verdict.digest,
        "dreambooth.verdict_record": verdict.uri,
    }
    run = has_run(client, origin.run_id)
    for name, value in tags.items():
        client.set_model_version_tag(book.name, version, name, value)
        if run:
            client.set_tag(origin.run_id, name, value)
    # the champion's own: how far it is from itself, which no rival is held to
    champion = verdict.against.removeprefix(f"{book.name}/")
    if verdict.noise and has_version(client, book.name, champion):
        for metric, width in verdict.noise.items():
            name = f"dreambooth.noise.{metric}"
            client.set_model_version_tag(book.name, champion, name, f"{width:.6f}")
    told = model_card.CardInputs(origin, run_inputs(book.store, origin), verdict)
    model_card.publish(client, book, told)


def _verdict_key(book: AliasLog, version: str) -> str:
    return f"{book.place}/verdicts/{version}.json"


def _book(config: Config, store: Store) -> AliasLog:
    book = book_of(config, store)
    if book is None:
        raise ConfigError(f"there is no registered model {config.name}: run its config first")
    return book
