"""The log of aliases: whoever writes it, from wherever, the changes stand in one order."""

import multiprocessing

import pytest

from dreambooth_core.config import Storage
from dreambooth_core.registry.aliases import AliasChange, AliasLog, AliasState, after
from dreambooth_core.storage.records import utc_now
from dreambooth_core.storage.stores import open_store


def change(action: str, version: str) -> AliasChange:
    return AliasChange(action=action, version=version, by="ann", when=utc_now())


def stand(*changes: AliasChange) -> AliasState:
    state = AliasState()
    for each in changes:
        state = after(state, each)
    return state


def test_a_promotion_keeps_the_one_before_and_a_rollback_goes_back_to_it() -> None:
    steps = [change("register", "3"), change("promote", "1"), change("override", "2")]
    assert stand(*steps).aliases == {"candidate": "3", "champion": "2", "previous": "1"}
    assert stand(*steps, change("promote", "2")) == stand(*steps), "twice is once"
    again = stand(*steps, change("promote", "3"), change("rollback", "3"))
    assert again == stand(*steps)
    assert stand(*steps, change("rollback", "2")).aliases == {"candidate": "3", "champion": "1"}
    assert stand(*steps, change("promote", "1")).aliases["previous"] == "2"
    assert stand(*steps).aliases_of("2") == ("champion",)


def promote_many(uri: str, who: int) -> None:
    log = AliasLog(open_store(Storage(uri=uri, endpoint=None)), "dog", "r")
    for step in range(8):
        log.append(lambda _, version=f"{who}{step}": change("promote", version))


def test_processes_that_promote_at_once_come_one_after_the_other(file_store) -> None:
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=promote_many, args=(file_store.uri, who)) for who in range(1, 5)
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
        assert entry.state == state, "each knew of the one before"
    assert len(set(state.champions)) == 32


def test_what_proposes_sees_the_standing_that_it_changes(file_store) -> None:
    log, seen = AliasLog(file_store, "dog", "r"), []

    def propose(state: AliasState) -> AliasChange | None:
        seen.append(state.champion)
        if len(seen) == 1:  # somebody is quicker
            log.append(lambda _: change("promote", "7"))
            return change("promote", "1")
        return None if state.champion == "7" else change("promote", "1")

    assert log.append(propose).champion == "7"
    assert seen == [None, "7"]
    assert [entry.version for entry in log.history()] == ["7"]


def test_an_entry_is_never_written_over(file_store) -> None:
    log = AliasLog(file_store, "dog", "r")
    log.append(lambda _: change("promote", "1"))
    (key,) = file_store.keys(f"{log.prefix}/aliases/")
    assert not file_store.put_if(key, b"{}", None)
    assert log.state.champion == "1"


@pytest.mark.parametrize("name", ["dog", "a.b-c_d"])
def test_books_of_other_names_and_registries_do_not_meet(file_store, name: str) -> None:
    AliasLog(file_store, name, "r").append(lambda _: change("promote", "1"))
    assert AliasLog(file_store, name, "s").state == AliasState()
    assert AliasLog(file_store, "x", "r").latest() is None
