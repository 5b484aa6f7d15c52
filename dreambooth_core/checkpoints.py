"""Resumable state on disk and in the store: what has no true manifest does not exist.

A checkpoint is a folder named by its step:

    00000100/
        <group>.safetensors     tensors by name: parameters, optimizer moments, losses
        manifest.json           step, and each file's size and SHA-256; written last

Locally the folder is filled beside, flushed and renamed. In the store its files come first and its
manifest last; they are not blobs, so that a checkpoint that is no longer kept can be deleted.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from dreambooth_core.blobs import digest_of_file
from dreambooth_core.errors import NotFound, StageFailed, StorageError
from dreambooth_core.records import Blob, Record
from dreambooth_core.storage import Store

if TYPE_CHECKING:
    from torch import Tensor

Groups = Mapping[str, Mapping[str, "Tensor"]]
"""File name without its end -> tensor name -> tensor."""

MANIFEST = "manifest.json"


class Checkpoint(Record):
    """The manifest: what a checkpoint consists of."""

    step: int
    """Optimizer steps that are done."""
    files: dict[str, Blob]
    """File name -> size and digest."""


def save(folder: Path, step: int, groups: Groups) -> Path:
    """Write `folder/<step>`, complete or not at all; one that is there already is replaced.

    Raises `StageFailed` when the disk does not take it.
    """
    from safetensors.torch import save_file

    final = folder / f"{step:08d}"
    beside = folder / f"{step:08d}.partial"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        files = {}
        for group, tensors in groups.items():
            path = beside / f"{group}.safetensors"
            save_file(dict(tensors), path)
            _flush(path)
            files[path.name] = Blob(sha256=digest_of_file(path), size=path.stat().st_size)
        manifest = Checkpoint(step=step, files=files)
        (beside / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        _flush(beside / MANIFEST)
        _flush(beside)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        _flush(folder)
    except OSError as error:
        raise StageFailed(
            f"cannot write the checkpoint {final} ({error.strerror}); free the disk, then run again"
        ) from error
    return final


def verify(path: Path) -> Checkpoint | None:
    """The manifest when every file is there and true, else None."""
    try:
        manifest = Checkpoint.model_validate_json((path / MANIFEST).read_text(encoding="utf-8"))
        for name, blob in manifest.files.items():
            file = path / name
            if file.stat().st_size != blob.size or digest_of_file(file) != blob.sha256:
                return None
    except (OSError, UnicodeDecodeError, ValidationError, StorageError):
        return None
    return manifest


def newest(folder: Path) -> tuple[Path, Checkpoint] | None:
    """The true checkpoint with the highest step; damaged ones are passed over."""
    for path in reversed(_steps(folder)):
        manifest = verify(path)
        if manifest is not None:
            return path, manifest
    return None


def load(path: Path, group: str) -> dict[str, "Tensor"]:
    """The tensors of one group, on the CPU."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = load_file(path / f"{group}.safetensors")
    return found


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest checkpoints, and what a killed writer left behind."""
    for path in _steps(folder)[:-keep]:
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def upload(store: Store, prefix: str, path: Path, keep: int) -> None:
    """Copy a local checkpoint to `<prefix>/<step>/`, manifest last, and drop the old ones there."""
    place = f"{prefix}/{path.name}"
    manifest = Checkpoint.model_validate_json((path / MANIFEST).read_text(encoding="utf-8"))
    for name in manifest.files:
        store.put_file(f"{place}/{name}", path / name)
    store.put_file(f"{place}/{MANIFEST}", path / MANIFEST)
    for step in _stored_steps(store, prefix)[:-keep]:
        store.delete(f"{prefix}/{step}/{MANIFEST}")
        for key in list(store.keys(f"{prefix}/{step}/")):
            store.delete(key)


def download(store: Store, prefix: str, folder: Path) -> tuple[Path, Checkpoint] | None:
    """Bring the newest true checkpoint of the store to `folder`; None when there is none."""
    for step in reversed(_stored_steps(store, prefix)):
        beside = folder / f"{step}.partial"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        with suppress(NotFound):
            for key in store.keys(f"{prefix}/{step}/"):
                store.get_file(key, beside / key.rsplit("/", 1)[-1])
        manifest = verify(beside)
        if manifest is None:
            shutil.rmtree(beside, ignore_errors=True)
            continue
        final = folder / step
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        return final, manifest
    return None


class Background:
    """Runs jobs one by one behind the training; a newer job replaces one that still waits."""

    def __init__(self, job: Callable[[Path], None]) -> None:
        self._job = job
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._waiting: Path | None = None
        self._lock = threading.Lock()
        self._running: Future[None] | None = None

    def submit(self, path: Path) -> None:
        """Hand over a path; the errors of earlier jobs are printed, since training goes on."""
        with self._lock:
            self._waiting = path
            if self._running is None or self._running.done():
                self._running = self._pool.submit(self._drain)

    def close(self) -> None:
        """Wait until everything that was handed over is done."""
        self._pool.shutdown(wait=True)

    def _drain(self) -> None:
        for path in self._taken():
            try:
                self._job(path)
            except (StageFailed, OSError) as error:
                print(f"checkpoint {path.name} was not uploaded: {error}", flush=True)

    def _taken(self) -> Iterator[Path]:
        while True:
            with self._lock:
                path, self._waiting = self._waiting, None
                if path is None:
                    self._running = None
                    return
            yield path


def _steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def _stored_steps(store: Store, prefix: str) -> list[str]:
    keys = store.keys(f"{prefix}/")
    return sorted({key.split("/")[-2] for key in keys if key.endswith(f"/{MANIFEST}")})


def _flush(path: Path) -> None:
    """Ask the disk to keep a file or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
