"""The log of aliases: concurrent changes of several processes are totally ordered."""

import json
import multiprocessing

import pytest

from dreambooth_core.config import Storage
from dreambooth_core.registry.aliases import AliasChange, AliasLog, AliasState, after
from dreambooth_core.storage.records import utc_now
from dreambooth_core.storage.stores import open_store


def change(action: str, version: str) -> AliasChange:
    return AliasChange(action=action, version=version, by="ann", when=utc_now())


def state_after(*changes: AliasChange) -> AliasState:
    state = AliasState()
    for each in changes:
        state = after(state, each)
    return state


def test_a_rollback_restores_the_previous_champion() -> None:
    steps = [change("register", "3"), change("promote", "1"), change("override", "2")]
    assert state_after(*steps).aliases == {"candidate": "3", "champion": "2", "previous": "1"}
    assert state_after(*steps, change("promote", "2")) == state_after(*steps), (
        "promoting the champion again changes nothing"
    )
    again = state_after(*steps, change("promote", "3"), change("rollback", "3"))
    assert again == state_after(*steps)
    assert state_after(*steps, change("rollback", "2")).aliases == {
        "candidate": "3",
        "champion": "1",
    }
    assert state_after(*steps, change("promote", "1")).aliases["previous"] == "2"
    assert state_after(*steps).aliases_of("2") == ("champion",)


def promote_many(uri: str, user: int) -> None:
    log = AliasLog(open_store(Storage(uri=uri, endpoint=None)), "dog", "r")
    for step in range(8):
        log.append(lambda _, version=f"{user}{step}": change("promote", version))


def test_concurrent_promotions_are_serialized(file_store) -> None:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=promote_many, args=(file_store.uri, user)) for user in range(1, 5)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    history = AliasLog(file_store, "dog", "r").history()
    assert [entry.number for entry in history] == list(range(1, 33))
    state = AliasState()
    for entry in history:
        state = after(state, entry)
        assert entry.state == state, "each change follows from the one before"
    assert len(set(state.champions)) == 32


def test_a_proposal_is_repeated_when_another_change_comes_first(file_store) -> None:
    log, states = AliasLog(file_store, "dog", "r"), []

    def propose(state: AliasState) -> AliasChange | None:
        states.append(state.champion)
        if len(states) == 1:  # another process appends first
            log.append(lambda _: change("promote", "7"))
            return change("promote", "1")
        return None if state.champion == "7" else change("promote", "1")

    assert log.append(propose).champion == "7"
    assert states == [None, "7"]
    assert [entry.version for entry in log.history()] == ["7"]


def test_an_entry_is_never_overwritten(file_store) -> None:
    log = AliasLog(file_store, "dog", "r")
    log.append(lambda _: change("promote", "1"))
    (key,) = file_store.keys(f"{log.prefix}/aliases/")
    assert not file_store.put_if(key, b"{}", None)
    assert log.state.champion == "1"


def test_a_log_of_an_earlier_version_is_read(file_store) -> None:
    entry = change("promote", "1").model_copy(
        update={"number": 1, "state": AliasState(champions=("1",))}
    )
    old = entry.model_dump()
    old["standing"] = old.pop("state")
    log = AliasLog(file_store, "dog", "r")
    file_store.put(f"{log.prefix}/aliases/000001.json", json.dumps(old).encode())
    assert log.state.champion == "1"
    log.append(lambda _: change("promote", "2"))
    assert log.state.previous == "1"


@pytest.mark.parametrize("name", ["dog", "a.b-c_d"])
def test_logs_of_other_names_and_registries_are_separate(file_store, name: str) -> None:
    AliasLog(file_store, name, "r").append(lambda _: change("promote", "1"))
    assert AliasLog(file_store, name, "s").state == AliasState()
    assert AliasLog(file_store, "x", "r").latest() is None
