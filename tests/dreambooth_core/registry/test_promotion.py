"""Promotion on a real MLflow store and a real log: by the gate, by a person, and back."""

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


def judged(config: Config, store: Store, versions) -> None:
    """The gate refuses them all, so that people may promote them."""
    for one in versions:
        promotion.apply_verdict(config, store, one, verdict(one.version, "keep", "base"))


def test_the_gates_word_puts_a_version_into_service(client, tracked_config, file_store, versions):
    first, second, _ = versions
    assert promotion.champion_of(tracked_config, file_store) is None
    said = verdict("1", "promote", "base")
    settled, reused = promotion.apply_verdict(tracked_config, file_store, first, said)
    assert (settled.aliases, reused) == (("champion",), False)
    assert aliases(client) == {"champion": "1"}
    champion = promotion.champion_of(tracked_config, file_store)
    assert champion is not None
    assert (champion.name, champion.weights.digest) == ("tiny/1", "a" * 64)
    assert champion.config.paths == tracked_config.paths
    tags = client.get_model_version("tiny", "1").tags
    assert tags["dreambooth.verdict"] == "promote"
    assert tags["dreambooth.verdict_sentence"] == said.sentence
    assert tags["dreambooth.verdict_digest"] == said.digest
    # the same again changes nothing, and MLflow is not even opened
    (tracked_config.paths.work / "mlflow.db").rename(tracked_config.paths.work / "away.db")
    (tracked_config.paths.work / "mlflow.db").touch()
    assert promotion.apply_verdict(tracked_config, file_store, first, said) == (settled, True)
    (tracked_config.paths.work / "away.db").rename(tracked_config.paths.work / "mlflow.db")

    rival = verdict("2", "promote", "tiny/1").model_copy(update={"noise": {"clip_i": 0.0125}})
    promotion.apply_verdict(tracked_config, file_store, second, rival)
    assert aliases(client) == {"champion": "2", "previous": "1"}
    noise = "dreambooth.noise.clip_i"
    tags = [client.get_model_version("tiny", version).tags for version in "12"]
    assert [one.get(noise) for one in tags] == ["0.012500", None]
    log = register.open_alias_log(client, tracked_config, file_store)
    assert log_of(log) == [("promote", "1", GATE), ("promote", "2", GATE)]
    assert log.history()[0].verdict == said.digest


def test_a_refused_version_waits_for_a_person_with_a_reason(
    client, tracked_config, file_store, versions
):
    said = verdict("1", "keep", "base")
    settled, _ = promotion.apply_verdict(tracked_config, file_store, versions[0], said)
    assert settled.aliases == ()
    with pytest.raises(ConfigError, match="keep") as refused:
        promotion.promote(tracked_config, file_store, PromotionRequest("1", "ann"))
    assert said.sentence in str(refused.value)
    promotion.promote(
        tracked_config, file_store, PromotionRequest("1", "ann", "the client likes it")
    )
    assert aliases(client) == {"champion": "1"}
    log = register.open_alias_log(client, tracked_config, file_store)
    assert log_of(log) == [("override", "1", "ann")]
    assert log.history()[0].reason == "the client likes it"
    tags = client.get_model_version("tiny", "1").tags
    assert tags["dreambooth.verdict_digest"] == log.history()[0].verdict != said.digest
    assert "ann promotes it: the client likes it" in tags["dreambooth.verdict_sentence"]
    # its run, run again, has the gate say the same as before: that changes nothing
    settled, reused = promotion.apply_verdict(tracked_config, file_store, versions[0], said)
    assert (settled.aliases, reused) == (("champion",), True)
    assert client.get_model_version("tiny", "1").tags == tags
    # again, and nothing is added
    promotion.promote(tracked_config, file_store, PromotionRequest("1", "bob"))
    assert len(log.history()) == 1


def test_what_the_gate_never_saw_no_reason_promotes(tracked_config, file_store, versions):
    with pytest.raises(ConfigError, match="never asked about it, so nothing is known"):
        promotion.promote(
            tracked_config, file_store, PromotionRequest("2", "ann", "it must go out today")
        )


def test_nobody_moves_a_version_without_a_name():
    with pytest.raises(ConfigError, match="give a name"):
        PromotionRequest("1", " ", "please")


def test_a_persons_word_is_made_good_if_it_was_not_told(
    client, tracked_config, file_store, versions
):
    """Killed between the log and MLflow, which the next to promote it puts right."""
    said = verdict("1", "keep", "base")
    promotion.apply_verdict(tracked_config, file_store, versions[0], said)
    word = override(file_store, said, "ann", "the client likes it")
    entry = AliasChange(
        action="override", version="1", by="ann", when=utc_now(), reason="the client likes it"
    )
    log = register.open_alias_log(client, tracked_config, file_store)
    log.append(lambda _: entry.model_copy(update={"verdict": word.digest}))
    assert client.get_model_version("tiny", "1").tags["dreambooth.verdict"] == "keep"
    promotion.promote(tracked_config, file_store, PromotionRequest("1", "bob"))
    tags = client.get_model_version("tiny", "1").tags
    assert tags["dreambooth.verdict_digest"] == word.digest
    assert "ann promotes it" in tags["dreambooth.verdict_sentence"]
    # judged again since, of which ann has said nothing
    again = verdict("1", "keep", "tiny/0")
    promotion.apply_verdict(tracked_config, file_store, versions[0], again)
    promotion.promote(tracked_config, file_store, PromotionRequest("1", "bob"))
    tags = client.get_model_version("tiny", "1").tags
    assert tags["dreambooth.verdict_digest"] == again.digest


def test_no_reason_promotes_what_is_not_what_it_should_be(tracked_config, file_store, versions):
    said = verdict("1", "keep", "base", rule="integrity")
    promotion.apply_verdict(tracked_config, file_store, versions[0], said)
    with pytest.raises(ConfigError, match="nothing is known of"):
        promotion.promote(tracked_config, file_store, PromotionRequest("1", "ann", "please"))


def test_a_verdict_about_another_champion_promotes_nobody(
    client, tracked_config, file_store, versions, capsys
):
    first, second, third = versions
    promotion.apply_verdict(tracked_config, file_store, first, verdict("1", "promote", "base"))
    # both were judged against version 1; the second one is quicker
    promotion.apply_verdict(tracked_config, file_store, second, verdict("2", "promote", "tiny/1"))
    late, _ = promotion.apply_verdict(
        tracked_config, file_store, third, verdict("3", "promote", "tiny/1")
    )
    assert late.aliases == ()
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert "run its config again" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="compared it with tiny/1"):
        promotion.promote(tracked_config, file_store, PromotionRequest("3", "ann"))


def test_without_automatic_a_person_promotes_what_the_gate_let_pass(
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


def test_a_rollback_goes_back_and_is_not_undone_by_the_gate(
    client, tracked_config, file_store, versions, capsys
):
    first, second, _ = versions
    promotion.apply_verdict(tracked_config, file_store, first, verdict("1", "promote", "base"))
    said = verdict("2", "promote", "tiny/1")
    promotion.apply_verdict(tracked_config, file_store, second, said)
    promotion.rollback(tracked_config, file_store, PromotionRequest("2", "ann", "wrong ears"))
    assert aliases(client) == {"champion": "1"}
    # a second click does not go further back
    promotion.rollback(tracked_config, file_store, PromotionRequest("2", "ann"))
    assert aliases(client) == {"champion": "1"}
    with pytest.raises(ConfigError, match="first champion"):
        promotion.rollback(tracked_config, file_store, PromotionRequest("1", "ann"))
    with pytest.raises(ConfigError, match="not the champion"):
        promotion.rollback(tracked_config, file_store, PromotionRequest("3", "ann"))
    settled, _ = promotion.apply_verdict(tracked_config, file_store, second, said)
    assert settled.aliases == ()
    assert "ann took it back" in capsys.readouterr().err
    promotion.promote(tracked_config, file_store, PromotionRequest("2", "ann"))
    assert aliases(client) == {"champion": "2", "previous": "1"}


def test_a_version_that_was_deleted_in_mlflow_bears_no_alias(
    client, tracked_config, file_store, versions, capsys
):
    judged(tracked_config, file_store, versions)
    for version in "12":
        promotion.promote(tracked_config, file_store, PromotionRequest(version, "ann", "why not"))
    client.delete_model_version("tiny", "1")
    with pytest.raises(ConfigError, match="tiny/1, which would be champion again, was deleted"):
        promotion.rollback(tracked_config, file_store, PromotionRequest("2", "ann"))
    assert promotion.alias_state(tracked_config, file_store).champion == "2"
    client.delete_model_version("tiny", "2")
    promotion.promote(tracked_config, file_store, PromotionRequest("3", "ann", "the last one"))
    assert aliases(client) == {"champion": "3"}
    assert "tiny@previous is version 2, which was deleted in MLflow" in capsys.readouterr().err


def test_no_rollback_to_what_has_lost_its_weights(tracked_config, file_store, versions):
    judged(tracked_config, file_store, versions)
    for version in "12":
        promotion.promote(tracked_config, file_store, PromotionRequest(version, "ann", "why not"))
    (blob,) = stored_inputs(file_store, "a").weights.files.values()
    file_store.delete(blob_key(blob))
    with pytest.raises(StorageError, match="no version goes without its weights"):
        promotion.rollback(tracked_config, file_store, PromotionRequest("2", "ann"))
    assert promotion.alias_state(tracked_config, file_store).champion == "2"


def test_whoever_is_killed_before_mlflow_was_told_is_made_good(
    client, tracked_config, file_store, versions
):
    promotion.apply_verdict(
        tracked_config, file_store, versions[0], verdict("1", "promote", "base")
    )
    log = register.open_alias_log(client, tracked_config, file_store)
    # the log is written, and then nothing
    log.append(lambda _: AliasChange(action="promote", version="2", by="ann", when=utc_now()))
    assert aliases(client) == {"champion": "1"}
    champion = promotion.champion_of(tracked_config, file_store)
    assert champion is not None
    assert champion.name == "tiny/2"
    assert aliases(client) == {"champion": "2", "previous": "1"}
    # killed between two aliases, or moved by hand in MLflow
    client.set_registered_model_alias("tiny", "previous", "3")
    assert promotion.alias_state(tracked_config, file_store).previous == "1"
    assert aliases(client) == {"champion": "2", "previous": "1"}


def promote_for_ever(config: Config, store: Store) -> None:
    for version in itertools.cycle("123"):
        promotion.promote(config, store, PromotionRequest(version, "ann", "again and again"))


@pytest.mark.slow
def test_whoever_is_killed_while_promoting_is_made_good(
    client, tracked_config, file_store, versions
):
    judged(tracked_config, file_store, versions)
    log = register.open_alias_log(client, tracked_config, file_store)
    dice = random.Random(0)
    kinds = multiprocessing.get_context("forkserver")
    kinds.set_forkserver_preload(["mlflow.tracking", "dreambooth_core.registry.promotion"])
    cut_short = 0
    for _ in range(12):
        length = len(log.history())
        process = kinds.Process(target=promote_for_ever, args=(tracked_config, file_store))
        process.start()
        while len(log.history()) == length:
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.3))
        process.kill()
        process.join(10)
        cut_short += not log.is_synced()
        history = log.history()
        assert [entry.number for entry in history] == list(range(1, len(history) + 1))
        state = promotion.alias_state(tracked_config, file_store)
        assert state == history[-1].state
        assert aliases(client) == state.aliases
    assert cut_short, "none was killed between the log and MLflow"


def test_promotions_at_once_leave_mlflow_where_the_log_ends(
    client, tracked_config, file_store, versions
):
    judged(tracked_config, file_store, versions)

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


def test_the_champions_own_run_is_held_against_the_one_it_replaced(
    tracked_config, file_store, versions
):
    first, second, _ = versions
    ours, theirs = stored_inputs(file_store, "a").weights, stored_inputs(file_store, "b").weights
    assert promotion.rival_of(tracked_config, file_store, ours) is None
    promotion.apply_verdict(tracked_config, file_store, first, verdict("1", "promote", "base"))
    assert promotion.rival_of(tracked_config, file_store, ours) is None, "it has beaten the base"
    rival = promotion.rival_of(tracked_config, file_store, theirs)
    assert rival is not None
    assert rival.name == "tiny/1"
    promotion.apply_verdict(tracked_config, file_store, second, verdict("2", "promote", "tiny/1"))
    again = promotion.rival_of(tracked_config, file_store, theirs)
    assert again is not None
    assert again.name == "tiny/1"


def test_nothing_goes_into_service_without_its_weights(tracked_config, file_store, versions):
    origin = read_provenance(register.alias_log_of(tracked_config, file_store), "1")
    weights = get_record(file_store, origin.weights, Weights)
    assert weights is not None
    file_store.delete(blob_key(weights.files["unet/weights.safetensors"]))
    with pytest.raises(StorageError, match="without its weights"):
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


def test_what_a_person_rejected_the_gate_does_not_promote(
    client, tracked_config, file_store, versions, capsys
):
    with pytest.raises(ConfigError, match="say it"):
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
