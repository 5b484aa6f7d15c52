"""Leases: one process at a time, among all machines, computes a result in the store.

<prefix>/lease.json      the holder, and the checkpoints and result below <prefix>/ that are valid

The object changes by compare-and-swap only, and a checkpoint or result is valid once the lease names
it. A holder that was taken over cannot change the lease any more, and its earlier objects have its own
lease number in their names.

Clocks of different machines are not compared: a holder sends heartbeats, and a waiting process takes
over after it has seen no new one for `Lease.seconds` of its own monotonic clock. It takes over at once
if the lease was released, or if it now holds the lock of the folder that the holder worked in, which
lasts as long as any process of the holder.
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
"""Time without a heartbeat after which others take over; heartbeats come every quarter of it."""
POLL_SECONDS = 1.0
"""Time between two reads of a waiting process."""
RESULT = "result.json"


class Lease(Record):
    """The holder of a prefix, and the valid objects below it."""

    number: int
    """One more than the previous holder's; part of the names of this holder's objects."""
    holder: str
    """Random owner id; a process that reads another id than its own has lost the lease."""
    host: str
    process: int
    since: str
    """Start, UTC by the holder's clock; shown to users only."""
    folder: str
    """Unique name of the lock of the holder's work folder."""
    seconds: float
    """Time without a heartbeat after which others may take over."""
    beat: int = 0
    """Number of this holder's writes."""
    held: bool = True
    checkpoints: tuple[str, ...] = ()
    """Names of the valid checkpoints, of all holders."""
    result: Blob | None = None
    """The result, from the decision until it is written to `RESULT`."""


@dataclass
class HeldLease:
    """A lease held by this process; methods raise `Superseded` once another has taken it over."""

    store: Store
    prefix: str
    holder: str
    lock: int = -1
    """Descriptor of the folder's lock, inherited by child processes."""
    lost: Superseded | None = None
    """Set by the heartbeat when the lease was taken over."""

    def lease(self) -> Lease:
        """The current lease, read from the store."""
        return self._ours()[0]

    def update(self, **changes: object) -> Lease:
        """Change fields of the lease; without changes, a heartbeat."""
        while True:
            lease, tag = self._ours()
            changed = lease.model_copy(update={**changes, "beat": lease.beat + 1})
            if self.store.put_if(_key(self.prefix), canonical(changed), tag):
                return changed
            # parent and child process of one training share it, and change different fields

    def publish_result(self, record: Record) -> None:
        """Publish the final result; if this process dies midway, the next holder completes it."""
        self.update(result=put_blob(self.store, canonical(record)))
        put_record(self.store, f"{self.prefix}/{RESULT}", record)

    def check(self) -> None:
        """Raise `Superseded` if a heartbeat has failed; makes no request."""
        if self.lost is not None:
            raise self.lost

    def _ours(self) -> tuple[Lease, str]:
        lease, tag = _read(self.store, self.prefix)
        if lease is None or tag is None:
            raise Superseded(f"{self._name()} was deleted: {_REMEDY}")
        if lease.holder != self.holder:
            raise Superseded(
                f"{self._name()} was taken over by {_owner(lease)} after {lease.seconds:g} s without a "
                f"heartbeat of this process: {_REMEDY}"
            )
        if not lease.held:
            raise Superseded(f"{self._name()} was released: {_REMEDY}")
        return lease, tag

    def _name(self) -> str:
        return f"the lease {self.store.uri}/{_key(self.prefix)}"


_REMEDY = "results of this process are discarded; run the same command to get the result"


def read(store: Store, prefix: str) -> Lease | None:
    """The lease of a prefix; None if there was never one."""
    return _read(store, prefix)[0]


@contextmanager
def exclusive(
    store: Store, prefix: str, folder: Path, result: Callable[[], object]
) -> Iterator[HeldLease | None]:
    """Hold the lease of `prefix` and the lock of `folder` while the block runs, after waiting for both.

    Yields None instead as soon as `result()` is true.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        lease = wait_for_lease(store, prefix, lock, result)
        if lease is None:
            yield None
        else:
            with _heartbeats(lease):
                yield lease
    finally:
        os.close(lock)


def wait_for_lease(
    store: Store, prefix: str, lock: int, result: Callable[[], object]
) -> HeldLease | None:
    """The lease and the folder's lock, once both are free, without heartbeats; None once `result()`."""
    name, last_tag, changed, shown = _name_of(lock), None, 0.0, ""
    while not result():
        lease, tag = _read(store, prefix)
        if tag != last_tag:
            last_tag, changed = tag, time.monotonic()
        has_folder = try_lock(lock)
        if has_folder and _is_free(lease, name, time.monotonic() - changed):
            held = _take(store, prefix, lock, (lease, tag))
            if held is not None:
                return held
        else:
            shown = _show_owner(prefix, lease, shown)
            time.sleep(POLL_SECONDS)
    return None


def _is_free(lease: Lease | None, folder: str, unchanged: float) -> bool:
    """Whether the lease has no live holder; `folder`: the lock that we hold, `unchanged`: seconds."""
    return lease is None or not lease.held or lease.folder == folder or unchanged > lease.seconds


def _take(
    store: Store, prefix: str, lock: int, current: tuple[Lease | None, str | None]
) -> HeldLease | None:
    """Take the lease under the next number, valid objects kept; None if another process was faster."""
    before, tag = current
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
    if not store.put_if(_key(prefix), canonical(ours), tag):
        return None
    if ours.result is not None:
        # the previous holder died between deciding and writing it
        store.put_if(f"{prefix}/{RESULT}", get_blob(store, ours.result), None)
    return HeldLease(store, prefix, ours.holder, lock)


@contextmanager
def _heartbeats(lease: HeldLease) -> Iterator[None]:
    """Send heartbeats while the block runs, then release the lease."""
    ends = threading.Event()

    def send() -> None:
        while not ends.wait(SECONDS / 4):
            try:
                lease.update()
            except Superseded as error:
                lease.lost = error
                return
            except StorageError:
                continue  # an unreachable store is no evidence of a takeover

    thread = threading.Thread(target=send, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
        with suppress(Superseded, StorageError):
            lease.update(held=False, result=None)


def _read(store: Store, prefix: str) -> tuple[Lease | None, str | None]:
    """The lease and its version tag in the store."""
    try:
        data, tag = store.get_tagged(_key(prefix))
        return Lease.model_validate_json(data), tag
    except NotFound:
        return None, None
    except ValidationError as error:
        raise StorageError(
            f"{_key(prefix)} in {store.uri} is no valid lease: make sure that no run uses it, delete "
            "it, and run again"
        ) from error


def _show_owner(prefix: str, lease: Lease | None, shown: str) -> str:
    """Print which process is waited for, unless `shown` already; the text for the next call."""
    is_held = lease is not None and lease.held
    owner = _owner(lease) if lease is not None and is_held else "another process in its folder"
    if owner != shown:
        console.say(f"{prefix[:16]}... is being computed by {owner}: waiting for the result")
    return owner


def _owner(lease: Lease) -> str:
    return f"process {lease.process} on {lease.host} (since {lease.since})"


def _key(prefix: str) -> str:
    return f"{prefix}/lease.json"


def _name_of(lock: int) -> str:
    """Unique name of a lock file, from random content and inode, so that a copied file differs."""
    if not os.pread(lock, 64, 0):
        os.pwrite(lock, secrets.token_hex(16).encode(), 0)
    return f"{os.pread(lock, 64, 0).decode()}-{os.fstat(lock).st_ino}"
