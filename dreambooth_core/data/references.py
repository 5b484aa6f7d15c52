"""Configs that take their photos from dataset versions: which version, and its files in a folder."""

import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dreambooth_core.config import Config, Subject
from dreambooth_core.data import versions
from dreambooth_core.data.masks import ENDING
from dreambooth_core.digests import digest_of, digest_of_file
from dreambooth_core.storage.blobs import fetch_blob
from dreambooth_core.storage.records import ImageSet
from dreambooth_core.storage.stores import Store

FOLDER = "datasets"
"""Below `paths.work`: the versions that were learned from here."""


def refers(config: Config) -> bool:
    """Whether any subject takes its photos from a dataset version."""
    return any(subject.dataset for subject in config.subjects)


def pinned(config: Config, store: Store) -> Config:
    """Every `@latest` and every shortened digest replaced by the whole digest that it means now.

    Raises `ConfigError` for a dataset or a version that is not there.
    """

    def pin(subject: Subject, name: str, version: str) -> str:
        return f"dataset://{name}@{versions.resolved(store, name, version)}"

    return _replaced(config, pin)


def brought(config: Config, store: Store) -> Config:
    """Every dataset version replaced by a folder below `paths.work` that holds its photos.

    Raises as `pinned` does, and `StorageError` for content that is lost or damaged.
    """

    def bring(subject: Subject, name: str, version: str) -> Path:
        digest = versions.resolved(store, name, version)
        folder = config.paths.work / FOLDER / name / digest
        return _filled(folder, store, versions.read(store, name, digest))

    return _replaced(config, bring)


def _replaced(config: Config, by: Callable[[Subject, str, str], str | Path]) -> Config:
    if not refers(config):
        return config

    def replace(subject: Subject) -> Subject:
        if subject.dataset is None:
            return subject
        name, _, version = subject.dataset.removeprefix("dataset://").partition("@")
        return subject.model_copy(update={"images": by(subject, name, version)})

    more = tuple(map(replace, config.more_subjects))
    return config.model_copy(update={"subject": replace(config.subject), "more_subjects": more})


def _filled(folder: Path, store: Store, version: ImageSet) -> Path:
    """The folder with just the version's files; it appears complete, and is made anew if damaged."""
    if _is_true(folder, version):
        return folder
    beside = folder.with_name(f"~{secrets.token_hex(8)}")
    beside.mkdir(parents=True)
    try:
        for image in version.images:
            path = fetch_blob(store, image.blob, beside / image.name)
            if image.mask is not None:
                fetch_blob(store, image.mask, path.with_name(f"{path.stem}{ENDING}"))
            if image.prompt:
                path.with_suffix(".txt").write_text(image.prompt, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another run was quicker, with the same files
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _is_true(folder: Path, version: ImageSet) -> bool:
    if not folder.is_dir():
        return False
    expected = {}
    for image in version.images:
        stem = Path(image.name).stem
        expected[image.name] = image.blob.sha256
        if image.mask is not None:
            expected[f"{stem}{ENDING}"] = image.mask.sha256
        if image.prompt:
            expected[f"{stem}.txt"] = digest_of(image.prompt.encode())
    return expected == {path.name: digest_of_file(path) for path in folder.iterdir()}
