"""Leases without a heart: what tests of makers share."""

import os
from pathlib import Path

from dreambooth_core.storage import leases
from dreambooth_core.storage.leases import HeldLease
from dreambooth_core.storage.stores import Store


def held(store: Store, place: str, folder: Path) -> HeldLease:
    """The lease for somebody who works in this folder; taken over at once for the next one there."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        hold = leases.wait_for_lease(store, place, lock, lambda: None)
    finally:
        os.close(lock)
    assert hold is not None
    return hold
