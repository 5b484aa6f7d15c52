"""Content-addressed blobs, and JSON records that refer to them.

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
"""Age from which an object is rewritten when it is used, so that `garbage_collection` keeps it: its
shortest grace is a day."""


def put_blob(store: Store, source: bytes | Path) -> Blob:
    """Store bytes or a file by content; no upload if the store has it, younger than `RENEW_SECONDS`."""
    if isinstance(source, bytes):
        blob = Blob(sha256=digest_of(source), size=len(source))
        if not _is_stored(store, blob):
            store.put(blob_key(blob), source)
        return blob
    blob = Blob(sha256=digest_of_file(source), size=source.stat().st_size)
    if not _is_stored(store, blob):
        store.put_file(blob_key(blob), source)
    return blob


def put_folder(store: Store, folder: Path) -> dict[str, Blob]:
    """Store all files below a folder: path relative to it -> blob."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): put_blob(store, path) for path in paths}


def get_blob(store: Store, blob: Blob) -> bytes:
    """The content; raises `NotFound`, or `StorageError` if it does not match its digest."""
    data = store.get(blob_key(blob))
    _verify(store, blob, digest_of(data))
    return data


def fetch_blob(store: Store, blob: Blob, path: Path) -> Path:
    """Download to `path`, which appears only when verified; a file with the right digest is kept.

    Raises `NotFound`, or `StorageError` if the stored content does not match its digest.
    """
    same_size = path.is_file() and path.stat().st_size == blob.size
    if same_size and digest_of_file(path) == blob.sha256:
        return path
    with written_beside(path) as temporary:
        store.get_file(blob_key(blob), temporary)
        _verify(store, blob, digest_of_file(temporary))
    return path


def blob_key(blob: Blob) -> str:
    """The key of a blob."""
    return f"blobs/sha256/{blob.sha256[:2]}/{blob.sha256[2:4]}/{blob.sha256}"


def put_record(store: Store, key: str, record: Record) -> bool:
    """Create the record's JSON; False if the key exists already, whose record is kept and renewed."""
    try:
        data = canonical(record)
    except ValueError as error:
        raise StorageError(f"{key} is not stored: it contains NaN or infinity") from error
    if store.put_if(key, data, None):
        return True
    renew(store, key, RENEW_SECONDS)
    return False


def get_record(store: Store, key: str, kind: type[R]) -> R | None:
    """The record under `key`, None if absent; raises `StorageError` if it is not a `kind`."""
    try:
        return kind.model_validate_json(store.get(key))
    except NotFound:
        return None
    except ValidationError as error:
        raise StorageError(
            f"{key} in {store.uri} is no valid {kind.__name__}: it is damaged or from another version; "
            "delete it and run again"
        ) from error


@overload
def image_set(store: Store, prefix: str, images: Iterable[Image]) -> ImageSet: ...


@overload
def image_set(store: Store, prefix: str, images: Iterable[Image], kind: type[S]) -> S: ...


def image_set(
    store: Store, prefix: str, images: Iterable[Image], kind: type[ImageSet] = ImageSet
) -> ImageSet:
    """An image set, its manifest stored at `<prefix>/<digest>.json`.

    The digest covers names, contents, prompts, subjects and masks, in order. Raises `ValueError` for
    duplicate names.
    """
    members = tuple(images)
    if len({image.name for image in members}) != len(members):
        raise ValueError("the names of an image set must be unique")
    digest = digest_json([_identity(image) for image in members])
    key = f"{prefix}/{digest}.json"
    result = kind(uri=f"{store.uri}/{key}", digest=digest, images=members)
    put_record(store, key, result)
    return result


def _is_stored(store: Store, blob: Blob) -> bool:
    found, oldest = store.stat(blob_key(blob)), time.time() - RENEW_SECONDS
    return found is not None and found.size == blob.size and found.written > oldest


def _identity(image: Image) -> list[object]:
    """The digested fields; subject 0 and no mask are left out, which keeps the digests of older sets."""
    short: list[object] = [image.name, image.blob.sha256, image.prompt]
    if image.subject == 0 and image.mask is None:
        return short
    return [*short, image.subject, image.mask.sha256 if image.mask else None]


def _verify(store: Store, blob: Blob, found: str) -> None:
    if found != blob.sha256:
        raise StorageError(
            f"{blob_key(blob)} in {store.uri} is damaged: the digest of its content is {found[:16]}...; "
            "delete it and run again"
        )
