"""Leases without a heartbeat, for tests."""

import os
from pathlib import Path

from dreambooth_core.storage import leases
from dreambooth_core.storage.leases import HeldLease
from dreambooth_core.storage.stores import Store


def held(store: Store, place: str, folder: Path) -> HeldLease:
    """The lease of a process with this work folder; a second call takes it over at once."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        hold = leases.wait_for_lease(store, place, lock, lambda: None)
    finally:
        os.close(lock)
    assert hold is not None
    return hold
