"""The store: reachable, writable, and with working conditional writes."""

import secrets
from collections.abc import Iterator

from dreambooth_core.errors import DreamBoothError, one_line
from dreambooth_core.servers.doctor import NO_SERVER, CheckResult, CheckTarget
from dreambooth_core.storage.stores import Store, open_store


def check(target: CheckTarget) -> Iterator[CheckResult]:
    """One result; a small object is written and deleted."""
    if target.storage is None:
        yield CheckResult(check="storage", level="skipped", sentence=NO_SERVER)
        return
    try:
        store = open_store(target.storage)
        is_conditional = _create_once(store)
    except DreamBoothError as error:
        yield CheckResult(check="storage", level="broken", sentence=one_line(error))
        return
    if is_conditional:
        sentence = f"{store.uri} is writable, and conditional writes work"
        yield CheckResult(check="storage", level="ok", sentence=sentence)
    else:
        sentence = (
            f"{store.uri} ignores If-None-Match, so two runs would overwrite each other: use a server "
            "with conditional writes (SeaweedFS 4, MinIO, AWS)"
        )
        yield CheckResult(check="storage", level="broken", sentence=sentence)


def _create_once(store: Store) -> bool:
    # a prefix where flows and trainers may delete: docs/security.md
    key = f"runs/doctor/{secrets.token_hex(8)}"
    try:
        return store.put_if(key, b"1", None) and not store.put_if(key, b"2", None)
    finally:
        store.delete(key)
