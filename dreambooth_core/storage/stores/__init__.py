"""Object stores: one module per URI scheme, one protocol; bytes under keys, with compare-and-swap.

A new scheme is one new module here with `open(storage) -> Store`; the contract tests run on it.
"""

import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from dreambooth_core import config, plugins
from dreambooth_core.errors import StorageError

_KEY = re.compile(r"[A-Za-z0-9._=-]+(/[A-Za-z0-9._=-]+)*")
_PREFIX = re.compile(r"[A-Za-z0-9._=/-]*")


class ListedObject(NamedTuple):
    """Metadata of an object."""

    key: str
    size: int
    """Bytes."""
    written: float
    """Time of the last write, in seconds since 1970, by the store's clock."""


class Store(Protocol):
    """Bytes under keys.

    Keys are segments of `[A-Za-z0-9._=-]` joined by "/" (at most 255 characters each, 900 in all).
    Every method may raise `StorageError`.
    """

    uri: str
    """`s3://bucket/prefix` or `file:///folder`, without a slash at the end."""

    def get(self, key: str) -> bytes:
        """The whole object; raises `NotFound`."""
        ...

    def get_tagged(self, key: str) -> tuple[bytes, str]:
        """The object and its version tag, for `put_if`; raises `NotFound`."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Write or overwrite; readers see the old object or the new one, never a part."""
        ...

    def put_if(self, key: str, data: bytes, tag: str | None) -> bool:
        """Write only if the object has this tag (None: only if absent); False if it does not."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Download to `path`, which appears only when complete; raises `NotFound`."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Upload a file of any size; visible only when complete."""
        ...

    def exists(self, key: str) -> bool: ...

    def stat(self, key: str) -> ListedObject | None:
        """Metadata of the object, None if absent; S3 bills it as a read."""
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix` ("" for all), sorted."""
        ...

    def listed(self, prefix: str) -> Iterator[ListedObject]:
        """The objects whose keys start with `prefix`, sorted by key."""
        ...

    def delete(self, key: str) -> None:
        """Remove the object if it exists."""
        ...


def open_store(storage: config.Storage) -> Store:
    """The store at `storage.uri`; raises `ConfigError` for an invalid or unknown URI."""
    scheme = storage.uri.split("://", 1)[0]
    store: Store = plugins.load(__name__, scheme).open(storage)
    return store


def reach(storage: config.Storage) -> None:
    """Check that the store's server, if its scheme has one, accepts requests.

    Raises `ConfigError` or `StorageError` within `deadlines.SERVER_SECONDS`.
    """
    scheme = plugins.load(__name__, storage.uri.split("://", 1)[0])
    if hasattr(scheme, "reach"):
        scheme.reach(storage)


def renew(store: Store, key: str, seconds: float) -> None:
    """Rewrite the object unchanged if it is older than `seconds`, which refreshes its time of writing.

    Garbage collection keeps young objects.
    """
    found = store.stat(key)
    if found and time.time() - found.written > seconds:
        store.put(key, store.get(key))


def checked_key(key: str) -> str:
    """The key; raises `StorageError` if it is invalid, e.g. leads out of the store."""
    segments = key.split("/")
    too_long = len(key) > 900 or any(len(segment) > 255 for segment in segments)
    if not _KEY.fullmatch(key) or {".", ".."} & set(segments) or too_long:
        raise StorageError(
            f"{key[:80]!r} is no storage key: use segments of letters, digits and ._=- "
            "joined by '/', none of them '.' or '..', at most 255 characters each and 900 in all"
        )
    return key


def checked_prefix(prefix: str) -> str:
    """The prefix; raises `StorageError` if no valid key can start with it."""
    bad = not _PREFIX.fullmatch(prefix) or "//" in prefix or prefix.startswith("/")
    if bad or {".", ".."} & set(prefix.split("/")[:-1]):
        raise StorageError(
            f"{prefix[:80]!r} is no prefix of a storage key: use segments of letters, digits and ._=- "
            "joined by '/'"
        )
    return prefix


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A temporary path next to `path` to write to: flushed and renamed at the end, removed on errors.

    Its name has a "~", which no key has, so listings skip it. Raises `OSError` if `path` exists and is
    no regular file.
    """
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "it is no regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"~{secrets.token_hex(8)}"
    try:
        yield temporary
        flushed(temporary)
        os.replace(temporary, path)
        flushed(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flushed(path: Path) -> None:
    """Flush a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
