"""Stores: one file per URI scheme, one protocol; bytes under keys, with compare-and-swap.

A new scheme is one new file here with `open(storage) -> Store`; contract tests find it by name.
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
    """What a listing shows of an object."""

    key: str
    size: int
    """Bytes."""
    written: float
    """When it was written last, in seconds since 1970, by the store's own clock."""


class Store(Protocol):
    """Bytes under keys.

    Keys are segments of `[A-Za-z0-9._=-]` joined by "/" (at most 255 characters each, 900 in all).
    Everything may raise `StorageError`.
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
        """Write only if the object still has this tag (None: only if absent); False when lost."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Download to `path`, which appears only when complete; raises `NotFound`."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Upload a file of any size; visible only when complete."""
        ...

    def exists(self, key: str) -> bool: ...

    def stat(self, key: str) -> ListedObject | None:
        """What a listing shows of the object, or None when there is none; S3 bills it as a read."""
        ...

    def keys(self, prefix: str) -> Iterator[str]:
        """Keys that start with `prefix` ("" for all), sorted."""
        ...

    def listed(self, prefix: str) -> Iterator[ListedObject]:
        """The same with sizes and times."""
        ...

    def delete(self, key: str) -> None:
        """Remove; nothing happens when there is no such object."""
        ...


def open_store(storage: config.Storage) -> Store:
    """The store behind `storage.uri`; raises `ConfigError` for a URI its scheme cannot hold."""
    scheme = storage.uri.split("://", 1)[0]
    store: Store = plugins.load(__name__, scheme).open(storage)
    return store


def reach(storage: config.Storage) -> None:
    """See that the store can be worked with, where its scheme has a server to ask.

    Raises `ConfigError` or `StorageError` within `deadlines.SERVER_SECONDS`.
    """
    scheme = plugins.load(__name__, storage.uri.split("://", 1)[0])
    if hasattr(scheme, "reach"):
        scheme.reach(storage)


def renew(store: Store, key: str, seconds: float) -> None:
    """Write the object anew, as it is, if it is older than `seconds`; nothing if it is not there.

    What has no other sign of being needed is as old as this, or its first writing, says.
    """
    found = store.stat(key)
    if found and time.time() - found.written > seconds:
        store.put(key, store.get(key))


def checked_key(key: str) -> str:
    """The key itself; raises `StorageError` when it could leave the store or be no file's name."""
    segments = key.split("/")
    too_long = len(key) > 900 or any(len(segment) > 255 for segment in segments)
    if not _KEY.fullmatch(key) or {".", ".."} & set(segments) or too_long:
        raise StorageError(
            f"{key[:80]!r} is no storage key: use segments of letters, digits and ._=- "
            "joined by '/', none of them '.' or '..', at most 255 characters each and 900 in all"
        )
    return key


def checked_prefix(prefix: str) -> str:
    """Like `checked_key`, for the beginning of a key."""
    bad = not _PREFIX.fullmatch(prefix) or "//" in prefix or prefix.startswith("/")
    if bad or {".", ".."} & set(prefix.split("/")[:-1]):
        raise StorageError(
            f"{prefix[:80]!r} cannot begin a storage key: it must follow the same rules"
        )
    return prefix


@contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A free name next to `path` to write to; flushed and renamed at the end, removed on any error.

    "~" cannot occur in a key, so the unfinished file is not taken for an object. Raises `OSError` for
    a path that is no regular file: a folder, a pipe or a device would be replaced by one.
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
    """Ask the disk to keep a file or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
