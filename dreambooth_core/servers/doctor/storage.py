"""The store: reached, the credentials taken, and a conditional write really conditional."""

import secrets
from collections.abc import Iterator

from dreambooth_core.errors import DreamBoothError, one_line
from dreambooth_core.servers.doctor import NOTHING_UP, CheckResult, CheckTarget
from dreambooth_core.storage.stores import Store, open_store


def check(site: CheckTarget) -> Iterator[CheckResult]:
    """One finding; a small object is written and deleted."""
    if site.storage is None:
        yield CheckResult(check="storage", level="skipped", sentence=NOTHING_UP)
        return
    try:
        store = open_store(site.storage)
        holds = _create_once(store)
    except DreamBoothError as error:
        yield CheckResult(check="storage", level="broken", sentence=one_line(error))
        return
    if holds:
        sentence = f"{store.uri} takes objects, and create-once writes hold"
        yield CheckResult(check="storage", level="ok", sentence=sentence)
    else:
        sentence = (
            f"{store.uri} lets a second create-once write through, so two runs would overwrite each "
            "other: use a server that knows If-None-Match (SeaweedFS 4, MinIO, AWS)"
        )
        yield CheckResult(check="storage", level="broken", sentence=sentence)


def _create_once(store: Store) -> bool:
    # where flows and trainers may delete too: docs/security.md
    key = f"runs/doctor/{secrets.token_hex(8)}"
    try:
        return store.put_if(key, b"1", None) and not store.put_if(key, b"2", None)
    finally:
        store.delete(key)
