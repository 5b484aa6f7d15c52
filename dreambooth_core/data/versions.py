"""Versions of photo sets: pushed once, never changed, with a pointer to the newest.

datasets/<name>/
    <digest>.json       the photos' normalised copies, masks and captions, as an `ImageSet`
    LATEST.json         all publications, the newest last

The pointer moves by compare-and-swap: of two that push at once, one comes after the other and
knows of it. Captions are kept as they were written; a subject fills them when it learns from them.
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
"""Races that a push may lose before it gives up."""


class Publication(Record):
    """A version that became the newest one."""

    number: int
    """1 for the first."""
    digest: str
    photos: int
    when: str
    """UTC, ISO 8601, to the second."""
    by: str


class DatasetPointer(Record):
    """What `LATEST.json` holds."""

    name: str
    history: Annotated[tuple[Publication, ...], Field(min_length=1)]

    @property
    def latest(self) -> Publication:
        return self.history[-1]


class PushResult(Record):
    """What a push came to."""

    name: str
    publication: Publication
    reference: str
    """What a config calls it: `dataset://NAME@<digest>`."""
    uri: str
    """The manifest's."""
    new: bool
    """Whether it was not the newest version before."""
    validation: Validation


def push(
    store: Store, folder: Path, name: str, resolution: int, rules: Dataset | None = None
) -> PushResult:
    """Check the photos, store them, and make them the newest version, unless they are that already.

    Raises `ConfigError` for a name that is none and a folder that is not there, `DatasetRefused`
    with the hard findings, and `StorageError` after losing race upon race.
    """
    check_name(name)
    members, validation = dataset.store_photos(store, folder, rules or Dataset(), resolution)
    version = image_set(store, f"datasets/{name}", members)
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
    """All publications of a dataset; raises `ConfigError` when there is none of that name."""
    found = _tagged(store, check_name(name))[0]
    if found is None:
        there = ", ".join(names(store)) or "none"
        raise ConfigError(
            f"there is no dataset {name} in {store.uri}, there is: {there}; "
            f"`dreambooth dataset push DIR {name}` makes it"
        )
    return found


def names(store: Store) -> list[str]:
    """The datasets of a store."""
    pointers = re.compile(rf"datasets/({DATASET_NAME})/LATEST\.json")
    found = map(pointers.fullmatch, store.keys("datasets/"))
    return [match.group(1) for match in found if match]


def resolved(store: Store, name: str, version: str) -> str:
    """The whole digest of `latest`, or of the digest that begins so; raises `ConfigError`."""
    published = pointer(store, name)
    if version == "latest":
        return published.latest.digest
    # a push that was killed before its pointer leaves a manifest that was never published
    known = dict.fromkeys(one.digest for one in published.history)
    found = [digest for digest in known if digest.startswith(version)]
    if len(found) != 1:
        what = "several versions begin" if found else "no version begins"
        raise ConfigError(
            f"{what} with {version} in the dataset {name}: `dreambooth dataset show {name}` "
            "lists them"
        )
    return found[0]


def read(store: Store, name: str, digest: str) -> ImageSet:
    """The version itself; raises `StorageError` when its manifest is gone."""
    key = f"datasets/{check_name(name)}/{digest}.json"
    found = get_record(store, key, ImageSet)
    if found is None:
        raise StorageError(f"{key} is no longer in {store.uri}: push its photos again")
    return found


def check_name(name: str) -> str:
    """The name itself; raises `ConfigError` for one that is no dataset's."""
    if not re.fullmatch(DATASET_NAME, name):
        raise ConfigError(
            f"{name[:80]!r} is no dataset's name: use up to 64 letters, digits, _ and -, "
            "a letter or digit first"
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
        if store.put_if(_place(name), canonical(after), tag):
            return publication, True
    raise StorageError(
        f"others push to the dataset {name} without end: the pointer moved {TRIES} times before "
        "this version could be its newest; push again"
    )


def _tagged(store: Store, name: str) -> tuple[DatasetPointer | None, str | None]:
    """The pointer and its tag, both None when there is none."""
    try:
        data, tag = store.get_tagged(_place(name))
        return DatasetPointer.model_validate_json(data), tag
    except NotFound:
        return None, None
    except ValidationError as error:
        raise StorageError(
            f"{_place(name)} in {store.uri} is no pointer to a dataset: it is damaged or from "
            "another version; put back an older copy of it"
        ) from error


def _place(name: str) -> str:
    return f"datasets/{name}/LATEST.json"
