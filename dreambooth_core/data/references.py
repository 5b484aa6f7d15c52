"""Dataset references (`dataset://NAME@VERSION`) in configs: pinned, and replaced by folders."""

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
"""Folder of fetched versions below `paths.work`."""


def uses_versions(config: Config) -> bool:
    """Whether any subject takes its photos from a dataset version."""
    return any(subject.dataset for subject in config.subjects)


def pinned(config: Config, store: Store) -> Config:
    """Every `@latest` and every shortened digest replaced by the full digest.

    Raises `ConfigError` for a missing dataset or version.
    """

    def pin(subject: Subject, name: str, version: str) -> str:
        return f"dataset://{name}@{versions.resolved(store, name, version)}"

    return _replaced(config, pin)


def with_folders(config: Config, store: Store) -> Config:
    """Every dataset version replaced by a folder below `paths.work` with its photos.

    Raises as `pinned` does, and `StorageError` for missing or damaged content.
    """

    def bring(subject: Subject, name: str, version: str) -> Path:
        digest = versions.resolved(store, name, version)
        folder = config.paths.work / FOLDER / name / digest
        return _filled(folder, store, versions.read(store, name, digest))

    return _replaced(config, bring)


def _replaced(config: Config, source: Callable[[Subject, str, str], str | Path]) -> Config:
    """`images` of subjects with a dataset replaced by `source(subject, name, version)`."""
    if not uses_versions(config):
        return config

    def replace(subject: Subject) -> Subject:
        if subject.dataset is None:
            return subject
        name, _, version = subject.dataset.removeprefix("dataset://").partition("@")
        return subject.model_copy(update={"images": source(subject, name, version)})

    more = tuple(map(replace, config.more_subjects))
    return config.model_copy(update={"subject": replace(config.subject), "more_subjects": more})


def _filled(folder: Path, store: Store, version: ImageSet) -> Path:
    """The folder with exactly the version's files; replaced atomically if it differs."""
    if _matches(folder, version):
        return folder
    temporary = folder.with_name(f"~{secrets.token_hex(8)}")
    temporary.mkdir(parents=True)
    try:
        for image in version.images:
            path = fetch_blob(store, image.blob, temporary / image.name)
            if image.mask is not None:
                fetch_blob(store, image.mask, path.with_name(f"{path.stem}{ENDING}"))
            if image.prompt:
                path.with_suffix(".txt").write_text(image.prompt, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # a concurrent run has created it with the same files
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _matches(folder: Path, version: ImageSet) -> bool:
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
