"""One process at a time holds a lease, also after deaths and delays; on both stores."""

import os
import secrets
import threading
import time
from pathlib import Path

import pytest

from dreambooth_core.config import Storage
from dreambooth_core.digests import canonical
from dreambooth_core.errors import StorageError, Superseded
from dreambooth_core.storage import leases
from dreambooth_core.storage.blobs import put_blob
from dreambooth_core.storage.leases import HeldLease, Lease
from dreambooth_core.storage.records import Blob
from dreambooth_core.storage.stage_cache import exclusive_stage
from dreambooth_core.storage.stores import Store, open_store
from tests.leased_by_hand import held

PREFIX = "runs/abc"


def _file(request: pytest.FixtureRequest) -> Storage:
    folder: Path = request.getfixturevalue("tmp_path")
    return Storage(uri=(folder / "store").as_uri(), endpoint=None)


def _s3(request: pytest.FixtureRequest) -> Storage:
    endpoint: str = request.getfixturevalue("s3_endpoint")
    return Storage(uri=f"s3://contract/leases/{secrets.token_hex(6)}", endpoint=endpoint)


@pytest.fixture(params=[_file, _s3], ids=["file", "s3"])
def location(request: pytest.FixtureRequest) -> Storage:
    found: Storage = request.param(request)
    return found


@pytest.fixture
def store(location: Storage) -> Store:
    return open_store(location)


@pytest.fixture(autouse=True)
def _fast_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.01)


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that expires after 0.2 s; for tests in which no holder must prevent it."""
    monkeypatch.setattr(leases, "SECONDS", 0.2)


def _wait_for_beat(store: Store, number: int) -> None:
    deadline = time.monotonic() + 30
    while _read(store).beat < number:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _read(store: Store) -> Lease:
    lease = leases.read(store, PREFIX)
    assert lease is not None
    return lease


def _never() -> None:
    return None


def test_a_lease_is_held_then_released_and_keeps_its_checkpoints(
    store: Store, tmp_path: Path
) -> None:
    assert leases.read(store, PREFIX) is None
    with leases.exclusive(store, PREFIX, tmp_path / "work", _never) as hold:
        assert hold is not None
        first = _read(store)
        assert (first.number, first.process, first.held) == (1, os.getpid(), True)
        assert first.holder == hold.holder
        hold.update(checkpoints=("00000010.1",))
    assert not _read(store).held
    with leases.exclusive(store, PREFIX, tmp_path / "other", _never) as hold:
        assert hold is not None
        assert hold.lease().number == 2
        assert hold.lease().holder != first.holder
        assert hold.lease().checkpoints == ("00000010.1",)


@pytest.mark.usefixtures("short_lease")
def test_heartbeats_last_as_long_as_the_lease_is_held(store: Store, tmp_path: Path) -> None:
    with leases.exclusive(store, PREFIX, tmp_path / "work", _never) as hold:
        assert hold is not None
        _wait_for_beat(store, 3)
        hold.check()
    beats = _read(store).beat
    time.sleep(leases.SECONDS)
    assert _read(store).beat == beats


def test_waiting_processes_name_the_holder_and_take_its_result(
    location: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun, go, made = threading.Event(), threading.Event(), []

    def make(key: str, hold: HeldLease) -> Blob:
        made.append(key)
        begun.set()
        assert go.wait(30)
        return Blob(sha256="x", size=len(made))

    found: list[tuple[Blob, bool]] = []

    def run(work: str) -> None:
        store = open_store(location)
        found.append(exclusive_stage(store, "runs", {"a": 1}, Blob, make, tmp_path / work))

    # two wait in other folders, one in the same folder
    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b", "c", "a")]
    threads[0].start()
    assert begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    output = ""
    while output.count("\n") < 3:
        output += capsys.readouterr().err
        time.sleep(0.01)
    assert found == []
    go.set()
    for thread in threads:
        thread.join(30)
    assert len(made) == 1
    assert sorted(reused for _, reused in found) == [False, True, True, True]
    assert {blob.size for blob, _ in found} == {1}
    assert output.count(f"is being computed by process {os.getpid()} on ") == 3
    assert capsys.readouterr().err == ""
    lease = leases.read(open_store(location), f"runs/{made[0]}")
    assert lease is not None
    assert (lease.number, lease.held, lease.result) == (1, False, None)


@pytest.mark.usefixtures("short_lease")
def test_a_lease_without_heartbeats_is_taken_over(store: Store, tmp_path: Path) -> None:
    dead = held(store, PREFIX, tmp_path / "dead")
    dead.update(checkpoints=("00000010.1",))
    began = time.monotonic()
    alive = held(store, PREFIX, tmp_path / "alive")
    assert time.monotonic() - began > leases.SECONDS
    assert alive.lease().number == 2
    assert alive.lease().checkpoints == ("00000010.1",)
    for act in (dead.lease, dead.update, lambda: dead.publish_result(Blob(sha256="x", size=1))):
        with pytest.raises(
            Superseded, match=rf"taken over by process {os.getpid()} on .*without a heartbeat"
        ):
            act()
    assert not store.exists(f"{PREFIX}/result.json")
    assert alive.lease().number == 2


def test_any_write_of_a_holder_counts_as_a_heartbeat(
    file_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one of a child process whose parent, which sends the heartbeats, has died."""
    monkeypatch.setattr(leases, "SECONDS", 1.0)
    child = held(file_store, PREFIX, tmp_path / "work")
    taken: list[HeldLease] = []
    waiting = threading.Thread(
        target=lambda: taken.append(held(file_store, PREFIX, tmp_path / "other"))
    )
    waiting.start()
    for step in range(15):
        child.update(checkpoints=(f"{step:08d}.1",))
        time.sleep(leases.SECONDS / 10)
    assert taken == []
    waiting.join(30)
    assert taken[0].lease().checkpoints == ("00000014.1",)


def test_the_wall_clock_has_no_influence(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    hold = held(store, PREFIX, tmp_path / "work")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    polls: list[int] = []
    assert (
        leases.wait_for_lease(
            store, PREFIX, _lock(tmp_path), lambda: polls.append(1) or len(polls) > 9
        )
        is None
    )
    assert hold.lease().number == 1


def test_in_the_same_folder_a_free_lock_proves_that_the_holder_has_ended(
    store: Store, tmp_path: Path
) -> None:
    gone = held(store, PREFIX, tmp_path / "work")
    again = held(store, PREFIX, tmp_path / "work")
    assert again.lease().number == 2
    with pytest.raises(Superseded):
        gone.update()
    # a copy of the folder has another lock name
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "lock").write_bytes((tmp_path / "work" / "lock").read_bytes())
    polls: list[int] = []
    lock = _lock(tmp_path / "copy")
    assert (
        leases.wait_for_lease(store, PREFIX, lock, lambda: polls.append(1) or len(polls) > 9)
        is None
    )


@pytest.mark.usefixtures("short_lease")
def test_a_heartbeat_detects_a_takeover(store: Store, tmp_path: Path) -> None:
    with leases.exclusive(store, PREFIX, tmp_path / "work", _never) as hold:
        assert hold is not None
        theirs = hold.lease().model_copy(update={"number": 2, "holder": "other"})
        store.put(f"{PREFIX}/lease.json", canonical(theirs))
        deadline = time.monotonic() + 30
        while hold.lost is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(Superseded, match="taken over"):
            hold.check()
    # the lease is not released: it belongs to another process
    assert _read(store) == theirs


@pytest.mark.usefixtures("short_lease")
def test_an_unreachable_store_does_not_end_a_lease(file_store: Store, tmp_path: Path) -> None:
    failures: list[str] = []

    class FailingStore(type(file_store)):  # type: ignore[misc]
        def get_tagged(self, key: str) -> tuple[bytes, str]:
            if threading.current_thread().name == "lease" and len(failures) < 3:
                failures.append(key)
                raise StorageError("no response")
            found: tuple[bytes, str] = super().get_tagged(key)
            return found

    failing = FailingStore(file_store.root)  # type: ignore[attr-defined]
    with leases.exclusive(failing, PREFIX, tmp_path / "work", _never) as hold:
        assert hold is not None
        _wait_for_beat(file_store, 2)
        hold.check()
    assert len(failures) == 3


@pytest.mark.usefixtures("short_lease")
def test_a_decided_result_that_was_not_written_is_written(store: Store, tmp_path: Path) -> None:
    """If the holder dies between the two, the decided result is kept."""
    decided = Blob(sha256="decided", size=1)
    dead = held(store, "runs/" + _key(), tmp_path / "dead")
    dead.update(result=put_blob(store, canonical(decided)))

    def make(_key: str, _hold: HeldLease) -> Blob:
        raise AssertionError("it was decided")

    assert exclusive_stage(store, "runs", {"a": 1}, Blob, make, tmp_path) == (decided, True)
    lease = leases.read(store, dead.prefix)
    assert lease is not None
    assert (lease.number, lease.held, lease.result) == (2, False, None)


def test_concurrent_processes_get_distinct_numbers(location: Storage, tmp_path: Path) -> None:
    numbers: list[int] = []

    def run(me: int) -> None:
        folder = tmp_path / str(me)
        with leases.exclusive(open_store(location), PREFIX, folder, _never) as hold:
            assert hold is not None
            numbers.append(hold.lease().number)

    threads = [threading.Thread(target=run, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert numbers == [1, 2, 3, 4, 5, 6]


def test_a_damaged_lease_is_refused(store: Store, tmp_path: Path) -> None:
    store.put(f"{PREFIX}/lease.json", b"{}")
    with pytest.raises(StorageError, match=r"lease\.json in .* is no valid lease"):
        held(store, PREFIX, tmp_path)


def _lock(folder: Path) -> int:
    return os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)


def _key() -> str:
    from dreambooth_core.storage.stage_cache import stage_key

    return stage_key("runs", {"a": 1})
