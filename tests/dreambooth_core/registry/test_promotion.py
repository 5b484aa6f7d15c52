"""Promotion by the gate and by a person, rollback and rejection, with MLflow in a sqlite file."""

import itertools
import multiprocessing
import random
import threading
import time

import pytest

from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError, StorageError
from dreambooth_core.evaluation.gate import override
from dreambooth_core.registry import promotion, register
from dreambooth_core.registry.aliases import AliasChange
from dreambooth_core.registry.promotion import GATE, PromotionRequest
from dreambooth_core.registry.provenance import read_provenance
from dreambooth_core.storage.blobs import blob_key, get_record
from dreambooth_core.storage.records import Weights, utc_now
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking import mlflow as tracking
from tests.registered_by_hand import log_of, stored_inputs, verdict, version_by_hand


@pytest.fixture
def client(tracked_config):
    return tracking.open_client(tracked_config)


@pytest.fixture
def versions(client, tracked_config, file_store):
    """Versions 1, 2 and 3, of weights aaa..., bbb... and ccc..."""
    return [version_by_hand(client, tracked_config, file_store, mark) for mark in "abc"]


def aliases(client) -> dict[str, str]:
    found = client.get_registered_model("tiny").aliases
    return {alias: str(version) for alias, version in found.items()}


def refuse_all(config: Config, store: Store, versions) -> None:
    """Apply a failing verdict to all versions, so that a person may promote them with a reason."""
    for one in versions:
        promotion.apply_verdict(config, store, one, verdict(one.version, "keep", "base"))


def test_the_gates_verdict_promotes_a_version(client, tracked_config, file_store, versions):
    first, second, _ = versions
    assert promotion.champion_of(tracked_config, file_store) is None
    gate_verdict = verdict("1", "promote", "base")
    settled, reused = promotion.apply_verdict(tracked_config, file_store, first, gate_verdict)
    assert (settled.aliases, reused) == (("champion",), False)
    assert aliases(client) == {"champion": "1"}
    champion = promotion.champion_of(tracked_config, file_store)
    assert champion is not None
    assert (champion.name, champion.weights.digest) == ("tiny/1", "a" * 64)
    assert champion.config.paths == tracked_config.paths
    tags = client.get_model_version("tiny", "1").tags
    assert tags["dreambooth.verdict"] == "promote"
    assert tags["dreambooth.verdict_sentence"] == gate_verdict.sentence
    assert tags["dreambooth.verdict_digest"] == gate_verdict.digest
    # the same verdict again changes nothing and does not open MLflow
    (tracked_config.paths.work / "mlflow.db").rename(tracked_config.paths.work / "away.db")
    (tracked_config.paths.work / "mlflow.db").touch()
    assert promotion.apply_verdict(tracked_config, file_store, first, gate_verdict) == (
        settled,
        True,
    )
    (tracked_config.paths.work / "away.db").rename(tracked_config.paths.work / "mlflow.db")

    rival = verdict("2", "promote", "tiny/1").model_copy(update={"noise": {"clip_i": 0.0125}})
    promotion.apply_verdict(tracked_config, file_store, second, rival)
    assert aliases(client) == {"champion": "2", "previous": "1"}
    noise = "dreambooth.noise.clip_i"
    tags = [client.get_model_version("tiny", version).tags for version in "12"]
    assert [one.get(noise) for one in tags] == ["0.012500", None]
    log = register.open_alias_log(client, tracked_config, file_store)
    assert log_of(log) == [("promote", "1", GATE), ("promote", "2", GATE)]
    assert log.history()[0].verdict == gate_verdict.digest


def test_a_refused_version_needs_a_person_with_a_reason(
    client, tracked_config, file_store, versions
):
    gate_verdict = verdict("1", "keep", "base")
    settled, _ = promotion.apply_verdict(tracked_config, file_store, versions[0], gate_verdict)
    assert settled.aliases == ()
    with pytest.raises(ConfigError, match="keep") as refused:
        promotion.promote(tracked_config, file_store, PromotionRequest("1", "ann"))
    assert gate_verdict.sentence in str(refused.value)
    promotion.promote(
        tracked_config, file_store, PromotionRequest("1", "ann", "the client likes it")
    )
    assert aliases(client) == {"champion": "1"}
    log = register.open_alias_log(client, tracked_config, file_store)
    assert log_of(log) == [("override", "1", "ann")]
    assert log.history()[0].reason == "the client likes it"
    tags = client.get_model_version("tiny", "1").tags
    assert tags["dreambooth.verdict_digest"] == log.history()[0].verdict != gate_verdict.digest
    assert "ann promotes it: the client likes it" in tags["dreambooth.verdict_sentence"]
    # the same verdict from a repeated run changes nothing
    settled, reused = promotion.apply_verdict(tracked_config, file_store, versions[0], gate_verdict)
    assert (settled.aliases, reused) == (("champion",), True)
    assert client.get_model_version("tiny", "1").tags == tags
    # promoting again appends nothing
    promotion.promote(tracked_config, file_store, PromotionRequest("1", "bob"))
    assert len(log.history()) == 1


def test_a_version_without_a_verdict_is_never_promoted(tracked_config, file_store, versions):
    with pytest.raises(ConfigError, match="no verdict on it, so its images were never measured"):
        promotion.promote(
            tracked_config, file_store, PromotionRequest("2", "ann", "it must go out today")
        )


def test_a_blank_name_is_refused():
    with pytest.raises(ConfigError, match="give a name"):
        PromotionRequest("1", " ", "please")


def test_an_override_is_published_after_a_crash(client, tracked_config, file_store, versions):
    """After a crash between log and MLflow, the next promotion publishes the override."""
    gate_verdict = verdict("1", "keep", "base")
    promotion.apply_verdict(tracked_config, file_store, versions[0], gate_verdict)
    overridden = override(file_store, gate_verdict, "ann", "the client likes it")
    entry = AliasChange(
        action="override", version="1", by="ann", when=utc_now(), reason="the client likes it"
    )
    log = register.open_alias_log(client, tracked_config, file_store)
    log.append(lambda _: entry.model_copy(update={"verdict": overridden.digest}))
    assert client.get_model_version("tiny", "1").tags["dreambooth.verdict"] == "keep"
    promotion.promote(tracked_config, file_store, PromotionRequest("1", "bob"))
    tags = client.get_model_version("tiny", "1").tags
    assert tags["dreambooth.verdict_digest"] == overridden.digest
    assert "ann promotes it" in tags["dreambooth.verdict_sentence"]
    # a later verdict, which ann did not override
    again = verdict("1", "keep", "tiny/0")
    promotion.apply_verdict(tracked_config, file_store, versions[0], again)
    promotion.promote(tracked_config, file_store, PromotionRequest("1", "bob"))
    tags = client.get_model_version("tiny", "1").tags
    assert tags["dreambooth.verdict_digest"] == again.digest


def test_a_reason_does_not_override_integrity(tracked_config, file_store, versions):
    gate_verdict = verdict("1", "keep", "base", rule="integrity")
    promotion.apply_verdict(tracked_config, file_store, versions[0], gate_verdict)
    with pytest.raises(ConfigError, match="without valid scores"):
        promotion.promote(tracked_config, file_store, PromotionRequest("1", "ann", "please"))


def test_a_verdict_against_an_earlier_champion_promotes_nothing(
    client, tracked_config, file_store, versions, capsys
):
    first, second, third = versions
    promotion.apply_verdict(tracked_config, file_store, first, verdict("1", "promote", "base"))
    # both were compared with version 1; version 2 is promoted first
    promotion.apply_verdict(tracked_config, file_store, second, verdict("2", "promote", "tiny/1"))
    late, _ = promotion.apply_verdict(
        tracked_config, file_store, third, verdict("3", "promote", "tiny/1")
    )
    assert late.aliases == ()
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert "run its config again" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="compared it with tiny/1"):
        promotion.promote(tracked_config, file_store, PromotionRequest("3", "ann"))


def test_without_auto_promote_a_person_promotes_what_passed_the_gate(
    client, tracked_config, file_store, versions
):
    gate = tracked_config.gate.model_copy(update={"auto_promote": False})
    config = tracked_config.model_copy(update={"gate": gate})
    promotion.apply_verdict(config, file_store, versions[0], verdict("1", "promote", "base"))
    assert aliases(client) == {}
    promotion.promote(config, file_store, PromotionRequest("1", "ann"))
    assert aliases(client) == {"champion": "1"}
    log = register.open_alias_log(client, config, file_store)
    assert log_of(log) == [("promote", "1", "ann")]


def test_a_rollback_is_not_undone_by_the_gate(client, tracked_config, file_store, versions, capsys):
    first, second, _ = versions
    promotion.apply_verdict(tracked_config, file_store, first, verdict("1", "promote", "base"))
    gate_verdict = verdict("2", "promote", "tiny/1")
    promotion.apply_verdict(tracked_config, file_store, second, gate_verdict)
    promotion.rollback(tracked_config, file_store, PromotionRequest("2", "ann", "wrong ears"))
    assert aliases(client) == {"champion": "1"}
    # the same rollback again changes nothing
    promotion.rollback(tracked_config, file_store, PromotionRequest("2", "ann"))
    assert aliases(client) == {"champion": "1"}
    with pytest.raises(ConfigError, match="first champion"):
        promotion.rollback(tracked_config, file_store, PromotionRequest("1", "ann"))
    with pytest.raises(ConfigError, match="not the champion"):
        promotion.rollback(tracked_config, file_store, PromotionRequest("3", "ann"))
    settled, _ = promotion.apply_verdict(tracked_config, file_store, second, gate_verdict)
    assert settled.aliases == ()
    assert "ann rolled it back" in capsys.readouterr().err
    promotion.promote(tracked_config, file_store, PromotionRequest("2", "ann"))
    assert aliases(client) == {"champion": "2", "previous": "1"}


def test_a_version_that_was_deleted_in_mlflow_has_no_alias(
    client, tracked_config, file_store, versions, capsys
):
    refuse_all(tracked_config, file_store, versions)
    for version in "12":
        promotion.promote(tracked_config, file_store, PromotionRequest(version, "ann", "why not"))
    client.delete_model_version("tiny", "1")
    with pytest.raises(ConfigError, match="tiny/1, the previous champion, was deleted"):
        promotion.rollback(tracked_config, file_store, PromotionRequest("2", "ann"))
    assert promotion.alias_state(tracked_config, file_store).champion == "2"
    client.delete_model_version("tiny", "2")
    promotion.promote(tracked_config, file_store, PromotionRequest("3", "ann", "the last one"))
    assert aliases(client) == {"champion": "3"}
    assert "tiny@previous is version 2, which was deleted in MLflow" in capsys.readouterr().err


def test_no_rollback_to_a_version_without_weights(tracked_config, file_store, versions):
    refuse_all(tracked_config, file_store, versions)
    for version in "12":
        promotion.promote(tracked_config, file_store, PromotionRequest(version, "ann", "why not"))
    (blob,) = stored_inputs(file_store, "a").weights.files.values()
    file_store.delete(blob_key(blob))
    with pytest.raises(StorageError, match="without which no version can be used"):
        promotion.rollback(tracked_config, file_store, PromotionRequest("2", "ann"))
    assert promotion.alias_state(tracked_config, file_store).champion == "2"


def test_mlflow_is_synchronized_after_a_crash(client, tracked_config, file_store, versions):
    promotion.apply_verdict(
        tracked_config, file_store, versions[0], verdict("1", "promote", "base")
    )
    log = register.open_alias_log(client, tracked_config, file_store)
    # a crash after the log was written
    log.append(lambda _: AliasChange(action="promote", version="2", by="ann", when=utc_now()))
    assert aliases(client) == {"champion": "1"}
    champion = promotion.champion_of(tracked_config, file_store)
    assert champion is not None
    assert champion.name == "tiny/2"
    assert aliases(client) == {"champion": "2", "previous": "1"}
    # a crash between two aliases, or an alias set by hand in MLflow
    client.set_registered_model_alias("tiny", "previous", "3")
    assert promotion.alias_state(tracked_config, file_store).previous == "1"
    assert aliases(client) == {"champion": "2", "previous": "1"}


def promote_forever(config: Config, store: Store) -> None:
    for version in itertools.cycle("123"):
        promotion.promote(config, store, PromotionRequest(version, "ann", "again and again"))


@pytest.mark.slow
def test_mlflow_is_synchronized_after_sigkill_while_promoting(
    client, tracked_config, file_store, versions
):
    refuse_all(tracked_config, file_store, versions)
    log = register.open_alias_log(client, tracked_config, file_store)
    draw = random.Random(0)
    kinds = multiprocessing.get_context("forkserver")
    kinds.set_forkserver_preload(["mlflow.tracking", "dreambooth_core.registry.promotion"])
    cut_short = 0
    for _ in range(12):
        length = len(log.history())
        process = kinds.Process(target=promote_forever, args=(tracked_config, file_store))
        process.start()
        while len(log.history()) == length:
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.join(10)
        cut_short += not log.is_synced()
        history = log.history()
        assert [entry.number for entry in history] == list(range(1, len(history) + 1))
        state = promotion.alias_state(tracked_config, file_store)
        assert state == history[-1].state
        assert aliases(client) == state.aliases
    assert cut_short, "no process was killed between log and MLflow"


def test_concurrent_promotions_leave_mlflow_at_the_end_of_the_log(
    client, tracked_config, file_store, versions
):
    refuse_all(tracked_config, file_store, versions)

    def work(version: str) -> None:
        promotion.promote(
            tracked_config, file_store, PromotionRequest(version, f"person {version}", "race")
        )

    threads = [threading.Thread(target=work, args=(version,)) for version in "123"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    log = register.open_alias_log(client, tracked_config, file_store)
    history = log.history()
    assert sorted(entry.version for entry in history) == ["1", "2", "3"]
    assert aliases(client) == {"champion": history[-1].version, "previous": history[-2].version}


def test_the_champions_own_weights_are_compared_with_the_previous_champion(
    tracked_config, file_store, versions
):
    first, second, _ = versions
    ours, theirs = stored_inputs(file_store, "a").weights, stored_inputs(file_store, "b").weights
    assert promotion.rival_of(tracked_config, file_store, ours) is None
    promotion.apply_verdict(tracked_config, file_store, first, verdict("1", "promote", "base"))
    assert promotion.rival_of(tracked_config, file_store, ours) is None, (
        "it was compared with the base"
    )
    rival = promotion.rival_of(tracked_config, file_store, theirs)
    assert rival is not None
    assert rival.name == "tiny/1"
    promotion.apply_verdict(tracked_config, file_store, second, verdict("2", "promote", "tiny/1"))
    again = promotion.rival_of(tracked_config, file_store, theirs)
    assert again is not None
    assert again.name == "tiny/1"


def test_no_version_is_promoted_without_its_weights(tracked_config, file_store, versions):
    provenance = read_provenance(register.alias_log_of(tracked_config, file_store), "1")
    weights = get_record(file_store, provenance.weights, Weights)
    assert weights is not None
    file_store.delete(blob_key(weights.files["unet/weights.safetensors"]))
    with pytest.raises(StorageError, match="without which no version can be used"):
        promotion.promote(tracked_config, file_store, PromotionRequest("1", "ann", "anyway"))


def test_another_address_of_the_same_server_finds_the_same_log(
    client, tracked_config, file_store, versions
):
    promotion.apply_verdict(
        tracked_config, file_store, versions[0], verdict("1", "promote", "base")
    )
    database = tracked_config.paths.work / "mlflow.db"
    rules = tracked_config.tracking.model_copy(update={"uri": f"sqlite:////{database}"})
    other = tracked_config.model_copy(update={"tracking": rules})
    champion = promotion.champion_of(other, file_store)
    assert champion is not None
    assert champion.name == "tiny/1"


def test_the_gate_does_not_promote_a_rejected_version(
    client, tracked_config, file_store, versions, capsys
):
    with pytest.raises(ConfigError, match="give a reason"):
        promotion.reject(tracked_config, file_store, PromotionRequest("1", "ann"))
    promotion.reject(tracked_config, file_store, PromotionRequest("1", "ann", "too yellow"))
    promotion.reject(tracked_config, file_store, PromotionRequest("1", "ann", "too yellow"))
    log = register.open_alias_log(client, tracked_config, file_store)
    assert log_of(log) == [("reject", "1", "ann")]
    promotion.apply_verdict(
        tracked_config, file_store, versions[0], verdict("1", "promote", "base")
    )
    assert "ann rejected it: a person must promote it" in capsys.readouterr().err
    assert aliases(client) == {}
    promotion.promote(tracked_config, file_store, PromotionRequest("1", "bob"))
    assert aliases(client) == {"champion": "1"}
    with pytest.raises(ConfigError, match="rollback"):
        promotion.reject(
            tracked_config, file_store, PromotionRequest("1", "ann", "still too yellow")
        )
