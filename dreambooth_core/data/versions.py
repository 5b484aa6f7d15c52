"""Dataset versions: immutable photo sets in the store, with a pointer to the latest.

datasets/<name>/
    <digest>.json       `ImageSet`: normalised photos, masks, captions with placeholders
    LATEST.json         `DatasetPointer`: all publications, the latest last

The pointer is updated by compare-and-swap, so that concurrent pushes are serialised.
"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from dreambooth_core.config import DATASET_NAME, Dataset
from dreambooth_core.data import dataset
from dreambooth_core.data.findings import Validation
from dreambooth_core.digests import canonical
from dreambooth_core.errors import ConfigError, NotFound, StorageError
from dreambooth_core.storage.blobs import get_record, image_set
from dreambooth_core.storage.records import ImageSet, Record, current_user, utc_now
from dreambooth_core.storage.stores import Store

TRIES = 20
"""Attempts of a push to update the pointer."""


class Publication(Record):
    """A version that was made the latest."""

    number: int
    """1 for the first."""
    digest: str
    photos: int
    when: str
    """UTC, ISO 8601, to the second."""
    by: str


class DatasetPointer(Record):
    """Content of `LATEST.json`."""

    name: str
    history: Annotated[tuple[Publication, ...], Field(min_length=1)]

    @property
    def latest(self) -> Publication:
        return self.history[-1]


class PushResult(Record):
    """Result of a push."""

    name: str
    publication: Publication
    reference: str
    """Value of `subject.images`: `dataset://NAME@<digest>`."""
    uri: str
    """URI of the manifest."""
    new: bool
    """False when the version was the latest already."""
    validation: Validation


def push(
    store: Store, folder: Path, name: str, resolution: int, rules: Dataset | None = None
) -> PushResult:
    """Check and store the photos, and make them the latest version of dataset `name`.

    Raises `ConfigError` for an invalid name and a missing folder, `DatasetRefused` with the hard
    findings, and `StorageError` when `TRIES` concurrent pushes came first.
    """
    check_name(name)
    photos, validation = dataset.store_photos(store, folder, rules or Dataset(), resolution)
    version = image_set(store, f"datasets/{name}", photos)
    publication, new = _published(store, name, version)
    return PushResult(
        name=name,
        publication=publication,
        reference=f"dataset://{name}@{version.digest}",
        uri=version.uri,
        new=new,
        validation=validation,
    )


def pointer(store: Store, name: str) -> DatasetPointer:
    """All publications of a dataset; raises `ConfigError` for an unknown name."""
    found = _tagged(store, check_name(name))[0]
    if found is None:
        raise ConfigError(
            f"{store.uri} has no dataset {name} (existing: {', '.join(names(store)) or 'none'}): "
            f"create it by `dreambooth dataset push DIR {name}`"
        )
    return found


def names(store: Store) -> list[str]:
    """Names of a store's datasets."""
    pointers = re.compile(rf"datasets/({DATASET_NAME})/LATEST\.json")
    found = map(pointers.fullmatch, store.keys("datasets/"))
    return [match.group(1) for match in found if match]


def resolved(store: Store, name: str, version: str) -> str:
    """The full digest of `latest` or of a digest's prefix.

    Raises `ConfigError` for an unknown name and an unknown or ambiguous prefix.
    """
    published = pointer(store, name)
    if version == "latest":
        return published.latest.digest
    # by the pointer, since a killed push leaves an unpublished manifest
    known = dict.fromkeys(one.digest for one in published.history)
    found = [digest for digest in known if digest.startswith(version)]
    if len(found) != 1:
        what = "several versions begin" if found else "no version begins"
        raise ConfigError(
            f"{what} with {version} in the dataset {name}: `dreambooth dataset show {name}` "
            "lists its versions"
        )
    return found[0]


def read(store: Store, name: str, digest: str) -> ImageSet:
    """The version's images; raises `StorageError` for a missing manifest."""
    key = f"datasets/{check_name(name)}/{digest}.json"
    found = get_record(store, key, ImageSet)
    if found is None:
        raise StorageError(f"{key} is no longer in {store.uri}: push its photos again")
    return found


def check_name(name: str) -> str:
    """`name` unchanged; raises `ConfigError` if it is invalid."""
    if not re.fullmatch(DATASET_NAME, name):
        raise ConfigError(
            f"{name[:80]!r} is an invalid dataset name: use up to 64 letters, digits, _ and -, "
            "starting with a letter or digit"
        )
    return name


def _published(store: Store, name: str, version: ImageSet) -> tuple[Publication, bool]:
    for _ in range(TRIES):
        before, tag = _tagged(store, name)
        history = before.history if before else ()
        if history and history[-1].digest == version.digest:
            return history[-1], False
        publication = Publication(
            number=len(history) + 1,
            digest=version.digest,
            photos=version.count,
            when=utc_now(),
            by=current_user(),
        )
        after = DatasetPointer(name=name, history=(*history, publication))
        if store.put_if(_pointer_key(name), canonical(after), tag):
            return publication, True
    raise StorageError(
        f"the pointer of dataset {name} was changed {TRIES} times by concurrent pushes: push again"
    )


def _tagged(store: Store, name: str) -> tuple[DatasetPointer | None, str | None]:
    """The pointer and its tag, both None if missing."""
    try:
        data, tag = store.get_tagged(_pointer_key(name))
        return DatasetPointer.model_validate_json(data), tag
    except NotFound:
        return None, None
    except ValidationError as error:
        raise StorageError(
            f"{_pointer_key(name)} in {store.uri} is not a valid dataset pointer, damaged or from "
            "another version: restore an older copy of it"
        ) from error


def _pointer_key(name: str) -> str:
    return f"datasets/{name}/LATEST.json"
