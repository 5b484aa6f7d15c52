"""Content-addressed blobs and the small records that point to them.

blobs/sha256/ab/cd/<hex>      immutable; the key is the SHA-256 of the content
<prefix>/<name>.json          a record, created once
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar, overload

from pydantic import ValidationError

from dreambooth_core.digests import canonical, digest_json, digest_of, digest_of_file
from dreambooth_core.errors import NotFound, StorageError
from dreambooth_core.storage.records import Blob, Image, ImageSet, Record
from dreambooth_core.storage.stores import Store, renew, written_beside

R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=ImageSet)


RENEW_SECONDS = 12 * 3600.0
"""What is older is written again by whoever relies on it, so that no janitor takes it from them: a
janitor lets everything live for a day at least (see `garbage_collection`)."""


def put_blob(store: Store, source: bytes | Path) -> Blob:
    """Store bytes or a file by content; nothing is sent when it is there already, and young."""
    if isinstance(source, bytes):
        blob = Blob(sha256=digest_of(source), size=len(source))
        if not _is_there(store, blob):
            store.put(blob_key(blob), source)
        return blob
    blob = Blob(sha256=digest_of_file(source), size=source.stat().st_size)
    if not _is_there(store, blob):
        store.put_file(blob_key(blob), source)
    return blob


def get_blob(store: Store, blob: Blob) -> bytes:
    """The content; raises `NotFound`, or `StorageError` when it is not what its digest says."""
    data = store.get(blob_key(blob))
    _verify(store, blob, digest_of(data))
    return data


def fetch_blob(store: Store, blob: Blob, path: Path) -> Path:
    """Bring the content to `path`, which appears only when verified; kept when there and true.

    Raises `NotFound`, or `StorageError` when the store's content is not what its digest says.
    """
    there = path.is_file() and path.stat().st_size == blob.size
    if there and digest_of_file(path) == blob.sha256:
        return path
    with written_beside(path) as temporary:
        store.get_file(blob_key(blob), temporary)
        _verify(store, blob, digest_of_file(temporary))
    return path


def blob_key(blob: Blob) -> str:
    """Where a blob lies in any store."""
    return f"blobs/sha256/{blob.sha256[:2]}/{blob.sha256[2:4]}/{blob.sha256}"


def put_record(store: Store, key: str, record: Record) -> bool:
    """Create the record's JSON; False when somebody was first (theirs stays)."""
    try:
        data = canonical(record)
    except ValueError as error:
        raise StorageError(f"{key} holds a number that is not finite: it is not stored") from error
    if store.put_if(key, data, None):
        return True
    renew(store, key, RENEW_SECONDS)
    return False


def get_record(store: Store, key: str, kind: type[R]) -> R | None:
    """The record under `key`, None when there is none; `StorageError` when it is another thing."""
    try:
        return kind.model_validate_json(store.get(key))
    except NotFound:
        return None
    except ValidationError as error:
        raise StorageError(
            f"{key} in {store.uri} is no {kind.__name__}: it is damaged or from another version; "
            "delete it and run again"
        ) from error


@overload
def image_set(store: Store, prefix: str, images: Iterable[Image]) -> ImageSet: ...


@overload
def image_set(store: Store, prefix: str, images: Iterable[Image], kind: type[S]) -> S: ...


def image_set(
    store: Store, prefix: str, images: Iterable[Image], kind: type[ImageSet] = ImageSet
) -> ImageSet:
    """Bind images to a set and write its manifest once, at `<prefix>/<digest>.json`.

    The digest covers names, contents, prompts, subjects and masks in this order; `ValueError` for
    a name used twice.
    """
    members = tuple(images)
    if len({image.name for image in members}) != len(members):
        raise ValueError("the names of an image set must be unique")
    digest = digest_json([_identity(image) for image in members])
    key = f"{prefix}/{digest}.json"
    made = kind(uri=f"{store.uri}/{key}", digest=digest, images=members)
    put_record(store, key, made)
    return made


def _is_there(store: Store, blob: Blob) -> bool:
    found, oldest = store.stat(blob_key(blob)), time.time() - RENEW_SECONDS
    return found is not None and found.size == blob.size and found.written > oldest


def _identity(image: Image) -> list[object]:
    """Short for an image of the first subject without a mask: sets of old keep their digests."""
    short: list[object] = [image.name, image.blob.sha256, image.prompt]
    if image.subject == 0 and image.mask is None:
        return short
    return [*short, image.subject, image.mask.sha256 if image.mask else None]


def _verify(store: Store, blob: Blob, found: str) -> None:
    if found != blob.sha256:
        raise StorageError(
            f"{blob_key(blob)} in {store.uri} is damaged: its content's digest is {found[:16]}...; "
            "delete it and run again"
        )
