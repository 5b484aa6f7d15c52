"""A stage is made once: what decides its result decides its key, and what is stored is taken."""

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
"""Raised by hand when the same inputs would give other results than before."""

R = TypeVar("R", bound=Record)


def cached_stage(
    store: Store,
    stage: str,
    inputs: Mapping[str, object],
    kind: type[R],
    make: Callable[[str], R],
    good: Callable[[R], bool] = lambda found: True,
) -> tuple[R, bool]:
    """The stage's result, and whether it was there already.

    `make` gets the key (64 hex digits) and may keep its own state below `<stage>/<key>/`; the
    result goes to `<stage>/<key>/result.json`, last. Of several makers at once the first one's
    result counts for all. What is found but is not `good` any more is made anew, under another key.
    """
    attempts = 0
    while True:
        key = stage_key(stage, {**inputs, "attempts": attempts} if attempts else inputs)
        place = f"{stage}/{key}/{RESULT}"
        stored = _found(store, place, kind)
        if stored is None:
            made = make(key)
            kept = made if put_record(store, place, made) else get_record(store, place, kind)
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
    """Like `cached_stage`, but of several makers at once, on any machines, one makes it and the others wait.

    `make` gets the lease as well, under which alone its state in the store may change (see
    `leases`); its folder `<work>/<stage>/<key>` is its own meanwhile. Raises `Superseded` when it was
    taken for dead and another one went on.
    """
    key = stage_key(stage, inputs)
    place = f"{stage}/{key}"

    def found() -> R | None:
        return _found(store, f"{place}/{RESULT}", kind)

    while (stored := found()) is None:
        with leases.exclusive(store, place, work.resolve() / place, found) as hold:
            if hold is not None and found() is None:
                made = make(key, hold)
                hold.publish_result(made)
                return made, False
    return stored, True


def _found(store: Store, place: str, kind: type[R]) -> R | None:
    """What is there, young from now on."""
    stored = get_record(store, place, kind)
    if stored is not None:
        renew(store, place, RENEW_SECONDS)
    return stored


def stage_key(stage: str, inputs: Mapping[str, object]) -> str:
    """Digest of the stage's name, its inputs and the code's epoch."""
    return digest_json({"stage": stage, "epoch": CODE_EPOCH, "inputs": dict(inputs)})
