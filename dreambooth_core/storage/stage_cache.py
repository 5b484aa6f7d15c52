"""Cached stages: a stage's result is stored under the digest of its inputs and reused."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from dreambooth_core.digests import digest_json
from dreambooth_core.storage import leases
from dreambooth_core.storage.blobs import RENEW_SECONDS, get_record, put_record
from dreambooth_core.storage.leases import RESULT, HeldLease
from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import Store, renew

CODE_EPOCH = 5
"""Part of every key; raised by hand when equal inputs give other results than before."""

R = TypeVar("R", bound=Record)


def cached_stage(
    store: Store,
    stage: str,
    inputs: Mapping[str, object],
    kind: type[R],
    make: Callable[[str], R],
    good: Callable[[R], bool] = lambda result: True,
) -> tuple[R, bool]:
    """The stage's result, and whether it was found in the store.

    `make` gets the key (64 hex digits) and may store its own state below `<stage>/<key>/`; the result
    is written last, to `<stage>/<key>/result.json`. Of concurrent processes the first to finish wins.
    A stored result that is not `good` is computed again under another key.
    """
    attempts = 0
    while True:
        key = stage_key(stage, {**inputs, "attempts": attempts} if attempts else inputs)
        path = f"{stage}/{key}/{RESULT}"
        stored = _stored(store, path, kind)
        if stored is None:
            made = make(key)
            kept = made if put_record(store, path, made) else get_record(store, path, kind)
            return kept or made, False
        if good(stored):
            return stored, True
        attempts += 1


def exclusive_stage(
    store: Store,
    stage: str,
    inputs: Mapping[str, object],
    kind: type[R],
    make: Callable[[str, HeldLease], R],
    work: Path,
) -> tuple[R, bool]:
    """Like `cached_stage`, but computed by one process at a time, on any machine; others wait for it.

    `make` also gets the lease, which guards its state in the store (see `leases`), and has the folder
    `<work>/<stage>/<key>` for itself. Raises `Superseded` if another process took over the lease.
    """
    key = stage_key(stage, inputs)
    prefix = f"{stage}/{key}"

    def result() -> R | None:
        return _stored(store, f"{prefix}/{RESULT}", kind)

    while (stored := result()) is None:
        with leases.exclusive(store, prefix, work.resolve() / prefix, result) as lease:
            if lease is not None and result() is None:
                made = make(key, lease)
                lease.publish_result(made)
                return made, False
    return stored, True


def _stored(store: Store, key: str, kind: type[R]) -> R | None:
    """The stored record, its timestamp refreshed so that garbage collection keeps it; None if absent."""
    stored = get_record(store, key, kind)
    if stored is not None:
        renew(store, key, RENEW_SECONDS)
    return stored


def stage_key(stage: str, inputs: Mapping[str, object]) -> str:
    """Digest of the stage's name, its inputs and `CODE_EPOCH`."""
    return digest_json({"stage": stage, "epoch": CODE_EPOCH, "inputs": dict(inputs)})
