"""One maker at a time among all machines: a lease in the store, beside what is being made.

<place>/lease.json      who makes what lies below <place>/, and what of it counts

The object changes by compare-and-swap alone, and what is made counts once it is named there. So
whoever was taken over, and wakes up however late, makes nothing count any more: its swap is
refused, and what it wrote before lies under its own number, where nobody looks.

Time says no more than when others may take over, and no two clocks are compared for it: a holder
beats, and who waits takes over after it has seen one and the same beat for `Lease.seconds` of its
own steady clock. It does so at once when the holder has let go, or worked in the very folder whose
lock the waiting one has now: that lock lasts as long as any process of its holder.
"""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from dreambooth_core import console
from dreambooth_core.digests import canonical
from dreambooth_core.errors import NotFound, StorageError, Superseded
from dreambooth_core.file_locks import try_lock
from dreambooth_core.storage.blobs import get_blob, put_blob, put_record
from dreambooth_core.storage.records import Blob, Record
from dreambooth_core.storage.stores import Store

SECONDS = 60.0
"""Without a beat, after which others take over; there are four beats in that time."""
LOOK_SECONDS = 1.0
"""Between two looks of who waits."""
RESULT = "result.json"


class Lease(Record):
    """Who makes what lies at a place, and what of it counts."""

    number: int
    """One more than the holder's before; it is in the names of what this one writes."""
    holder: str
    """A random name: whoever finds another one there has been taken over."""
    host: str
    process: int
    since: str
    """UTC by the holder's clock, for people."""
    folder: str
    """What the lock of the folder is called that it works in."""
    seconds: float
    """Without a beat, after which others may take over."""
    beat: int = 0
    """Changes that this holder has made."""
    held: bool = True
    checkpoints: tuple[str, ...] = ()
    """Names of those that count, whoever wrote them."""
    result: Blob | None = None
    """The record that is to be the result, from when it is decided until it is there."""


@dataclass
class HeldLease:
    """A lease that is ours until somebody takes it over; everything raises `Superseded` then."""

    store: Store
    prefix: str
    holder: str
    lock: int = -1
    """Descriptor of the folder's lock, for children to keep."""
    lost: Superseded | None = None
    """What the last beat met with."""

    def lease(self) -> Lease:
        """As it is now."""
        return self._ours()[0]

    def update(self, **changes: object) -> Lease:
        """Change what it says, which counts from then on for everybody; or only beat."""
        while True:
            lease, tag = self._ours()
            changed = lease.model_copy(update={**changes, "beat": lease.beat + 1})
            if self.store.put_if(_key(self.prefix), canonical(changed), tag):
                return changed
            # parent and child of one training hold it together, and amend different things

    def publish_result(self, record: Record) -> None:
        """Make this the place's result, for good; a holder that dies on the way has it finished."""
        self.update(result=put_blob(self.store, canonical(record)))
        put_record(self.store, f"{self.prefix}/{RESULT}", record)

    def check(self) -> None:
        """Ask no store, only what the beats have met with."""
        if self.lost is not None:
            raise self.lost

    def _ours(self) -> tuple[Lease, str]:
        lease, tag = _look(self.store, self.prefix)
        if lease is None or tag is None:
            raise Superseded(f"{self._here()} is gone: {_REMEDY}")
        if lease.holder != self.holder:
            raise Superseded(
                f"{self._here()} was taken over by {_who(lease)}, as there was no sign of life from "
                f"this process for {lease.seconds:g} s: {_REMEDY}"
            )
        if not lease.held:
            raise Superseded(f"{self._here()} was given back: {_REMEDY}")
        return lease, tag

    def _here(self) -> str:
        return f"the lease {self.store.uri}/{_key(self.prefix)}"


_REMEDY = "nothing that this process makes counts any more; the same command takes the result"


def read(store: Store, place: str) -> Lease | None:
    """The lease as anybody may see it; None where nothing was ever made under one."""
    return _look(store, place)[0]


@contextmanager
def exclusive(
    store: Store, place: str, folder: Path, over: Callable[[], object]
) -> Iterator[HeldLease | None]:
    """Be the only one, while the block runs, that makes `place` and that works in `folder`.

    Waits for whoever does; None as soon as there is something in `over()`, which ends the waiting.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        hold = wait_for_lease(store, place, lock, over)
        if hold is None:
            yield None
        else:
            with _beating(hold):
                yield hold
    finally:
        os.close(lock)


def wait_for_lease(
    store: Store, place: str, lock: int, over: Callable[[], object]
) -> HeldLease | None:
    """The lease with the folder's lock, once both are free; it does not beat by itself."""
    name, seen, at, said = _name_of(lock), None, 0.0, ""
    while not over():
        lease, tag = _look(store, place)
        if tag != seen:
            seen, at = tag, time.monotonic()
        in_folder = try_lock(lock)
        if in_folder and _is_free(lease, name, time.monotonic() - at):
            hold = _taken(store, place, lock, (lease, tag))
            if hold is not None:
                return hold
        else:
            said = _told(place, lease, said)
            time.sleep(LOOK_SECONDS)
    return None


def _is_free(lease: Lease | None, folder: str, quiet: float) -> bool:
    """Whether nobody works under it: known by the folder's lock, which is ours, or by the silence."""
    return lease is None or not lease.held or lease.folder == folder or quiet > lease.seconds


def _taken(
    store: Store, place: str, lock: int, found: tuple[Lease | None, str | None]
) -> HeldLease | None:
    """The lease under the next number, with what counts already; None when another was faster."""
    before, tag = found
    ours = Lease(
        number=1 + (before.number if before else 0),
        holder=secrets.token_hex(16),
        host=socket.gethostname(),
        process=os.getpid(),
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        folder=_name_of(lock),
        seconds=SECONDS,
        checkpoints=before.checkpoints if before else (),
        result=before.result if before else None,
    )
    if not store.put_if(_key(place), canonical(ours), tag):
        return None
    if ours.result is not None:
        # decided by one that died before it was there
        store.put_if(f"{place}/{RESULT}", get_blob(store, ours.result), None)
    return HeldLease(store, place, ours.holder, lock)


@contextmanager
def _beating(hold: HeldLease) -> Iterator[None]:
    """Beat while the block runs, and let go after it."""
    ends = threading.Event()

    def beat() -> None:
        while not ends.wait(SECONDS / 4):
            try:
                hold.update()
            except Superseded as error:
                hold.lost = error
                return
            except StorageError:
                continue  # what cannot be reached for a moment, or for long, tells nothing of others

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
        with suppress(Superseded, StorageError):
            hold.update(held=False, result=None)


def _look(store: Store, place: str) -> tuple[Lease | None, str | None]:
    """The lease and its tag in the store."""
    try:
        data, tag = store.get_tagged(_key(place))
        return Lease.model_validate_json(data), tag
    except NotFound:
        return None, None
    except ValidationError as error:
        raise StorageError(
            f"{_key(place)} in {store.uri} is no lease: see that nobody works there, delete it, "
            "then run again"
        ) from error


def _told(place: str, lease: Lease | None, said: str) -> str:
    """Say whom one waits for, if that is news."""
    held = lease is not None and lease.held
    who = _who(lease) if lease is not None and held else "another process that uses its folder"
    if who != said:
        console.say(f"{place[:16]}... is being made by {who}: waiting for the result")
    return who


def _who(lease: Lease) -> str:
    return f"process {lease.process} on {lease.host} (since {lease.since})"


def _key(place: str) -> str:
    return f"{place}/lease.json"


def _name_of(lock: int) -> str:
    """What no other folder's lock is called; a copied file is another one."""
    if not os.pread(lock, 64, 0):
        os.pwrite(lock, secrets.token_hex(16).encode(), 0)
    return f"{os.pread(lock, 64, 0).decode()}-{os.fstat(lock).st_ino}"
