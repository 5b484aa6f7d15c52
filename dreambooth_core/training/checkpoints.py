"""Checkpoint files: save, verify, list, load, prune, upload and download.

A checkpoint is a folder named by its step, and counts only with a valid manifest:

    00000100/
        <group>.safetensors     tensors by name: parameters, optimizer, average, losses
        scalars.json            optimizer, gradient scaler, learning curves
        manifest.json           step, run, code, and each file's size and SHA-256; written last

Locally the folder is written as `<step>.partial`, flushed and renamed. In the store it is
`<run>/checkpoints/<step>.<number>/` with the number of its writer's lease, and counts once the lease
lists it; its files are not blobs, so that pruned checkpoints can be deleted.
"""

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dreambooth_core.digests import digest_of_file
from dreambooth_core.errors import NotFound, StageFailed, StorageError
from dreambooth_core.storage.checkpoint_manifests import (
    CHECKPOINTS,
    MANIFEST,
    Checkpoint,
    counted_checkpoints,
)
from dreambooth_core.storage.leases import HeldLease
from dreambooth_core.storage.records import Blob
from dreambooth_core.storage.stores import Store, flushed

if TYPE_CHECKING:
    from torch import Tensor

SCALARS = "scalars.json"


@dataclass(frozen=True)
class Snapshot:
    """Resumable state after a step; tensors on the CPU."""

    step: int
    groups: Mapping[str, Mapping[str, "Tensor"]]
    """File name without suffix -> tensor name -> tensor."""
    scalars: Mapping[str, Any]
    """JSON document of everything but tensors."""
    best: int | None = None
    """The best step so far, with validation."""
    over: bool = False
    """Whether the training ends at this step."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints are kept: the newest, steps divisible by `every`, and the best."""

    newest: int
    every: int | None = None

    def kept(self, steps: Collection[int], best: int | None) -> set[int]:
        last = sorted(steps)[-self.newest :]
        periodic = [step for step in steps if self.every and step % self.every == 0]
        return {*last, *periodic, *(step for step in steps if step == best)}


def save(folder: Path, snapshot: Snapshot, run: str = "", code: str = "") -> Path:
    """Write `folder/<step>` atomically, replacing an existing one; raises `StageFailed` on disk errors."""
    from safetensors.torch import save_file

    final = folder / f"{snapshot.step:08d}"
    partial = folder / f"{snapshot.step:08d}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for group, tensors in snapshot.groups.items():
            save_file(dict(tensors), partial / f"{group}.safetensors")
        (partial / SCALARS).write_text(json.dumps(snapshot.scalars, sort_keys=True), "utf-8")
        files = {}
        for path in sorted(partial.iterdir()):
            flushed(path)
            files[path.name] = Blob(sha256=digest_of_file(path), size=path.stat().st_size)
        manifest = Checkpoint(
            step=snapshot.step,
            run=run,
            code=code,
            best=snapshot.best,
            over=snapshot.over,
            files=files,
        )
        (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        flushed(partial / MANIFEST)
        flushed(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        flushed(folder)
    except OSError as error:
        raise StageFailed(
            f"cannot write the checkpoint {final} ({error.strerror}); free the disk, then run again"
        ) from error
    return final


def verify(path: Path) -> Checkpoint | None:
    """The manifest if every file has its size and digest, else None."""
    try:
        manifest = Checkpoint.model_validate_json((path / MANIFEST).read_text(encoding="utf-8"))
        for name, blob in manifest.files.items():
            file = path / name
            if file.stat().st_size != blob.size or digest_of_file(file) != blob.sha256:
                return None
    except (OSError, UnicodeDecodeError, ValidationError, StorageError):
        return None
    return manifest


def newest(
    folder: Path, warn: Callable[[str], None] = lambda message: None
) -> tuple[Path, Checkpoint] | None:
    """The valid checkpoint with the highest step; damaged ones are skipped with a warning."""
    for path in reversed(_steps(folder)):
        manifest = verify(path)
        if manifest is not None:
            return path, manifest
        warn(f"the checkpoint {path} is damaged and skipped")
    return None


def load(path: Path, group: str) -> dict[str, "Tensor"]:
    """The tensors of one group, on the CPU."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = load_file(path / f"{group}.safetensors")
    return found


def scalars(path: Path) -> dict[str, Any]:
    """The JSON document of a verified checkpoint."""
    found: dict[str, Any] = json.loads((path / SCALARS).read_text(encoding="utf-8"))
    return found


def prune(folder: Path, retention: Retention, best: int | None) -> None:
    """Delete checkpoints that `retention` does not keep, and partial ones of a killed writer."""
    for path in folder.glob("*.partial"):
        shutil.rmtree(path, ignore_errors=True)
    paths = _steps(folder)
    kept = retention.kept([int(path.name) for path in paths], best)
    for path in paths:
        if int(path.name) not in kept:
            # renamed first: a process killed here leaves a partial folder, not a damaged checkpoint
            shutil.rmtree(path.rename(path.with_suffix(".partial")), ignore_errors=True)


def mirror(lease: HeldLease, folder: Path, retention: Retention) -> None:
    """Upload the folder's checkpoints, the newest first, and prune those in the store.

    Checkpoints that `retention` does not keep, and uncounted ones of earlier lease holders, are
    deleted in the store. Raises `Superseded`.
    """
    store, run, number = lease.store, lease.prefix, lease.lease().number
    stored, best = {_step(name): name for name in counted_checkpoints(store, run)}, None
    for path in reversed(_steps(folder)):
        manifest = verify(path)
        if manifest is None:
            continue  # pruned or replaced in the meantime
        best = manifest.best if best is None else best
        if int(path.name) not in stored:
            name = f"{path.name}.{number}"
            with suppress(FileNotFoundError):
                _upload(store, f"{run}/{CHECKPOINTS}/{name}", path, manifest)
                stored[manifest.step] = name
                lease.update(checkpoints=tuple(sorted(stored.values())))
    kept = retention.kept(stored, best)
    names = sorted(name for step, name in stored.items() if step in kept)
    lease.update(checkpoints=tuple(names))
    _delete_uncounted(store, f"{run}/{CHECKPOINTS}", names, number)


def _upload(store: Store, prefix: str, path: Path, manifest: Checkpoint) -> None:
    for name in (*manifest.files, MANIFEST):
        store.put_file(f"{prefix}/{name}", path / name)


def _delete_uncounted(store: Store, prefix: str, names: Collection[str], number: int) -> None:
    """Delete checkpoints not in `names`, manifests first.

    Those of later lease holders, which may still be uploading, are kept.
    """
    for key in sorted(store.keys(f"{prefix}/"), key=lambda key: not key.endswith(f"/{MANIFEST}")):
        name = key.split("/")[-2]
        if name not in names and int(name.partition(".")[2] or 0) <= number:
            store.delete(key)


def download(
    store: Store, run: str, folder: Path, above: int = 0
) -> tuple[Path, Checkpoint] | None:
    """Download the store's newest valid checkpoint; None if there is none beyond step `above`."""
    for name in reversed(counted_checkpoints(store, run)):
        if _step(name) <= above:
            break
        manifest = _download(store, run, folder, name)
        if manifest is not None:
            return folder / f"{manifest.step:08d}", manifest
    return None


def fetch_step(store: Store, run: str, folder: Path, step: int) -> Path | None:
    """The valid checkpoint of one step, from the folder, else from the store, else None."""
    path = folder / f"{step:08d}"
    stored = [name for name in counted_checkpoints(store, run) if _step(name) == step]
    found = verify(path) or any(_download(store, run, folder, name) for name in stored)
    return path if found else None


def _download(store: Store, run: str, folder: Path, name: str) -> Checkpoint | None:
    final = folder / f"{_step(name):08d}"
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    with suppress(NotFound):
        for key in store.keys(f"{run}/{CHECKPOINTS}/{name}/"):
            store.get_file(key, partial / key.rsplit("/", 1)[-1])
    manifest = verify(partial)
    if manifest is None:
        shutil.rmtree(partial, ignore_errors=True)
        return None
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return manifest


class Writer:
    """Writes every snapshot in order in a background thread; one at a time."""

    def __init__(self, write: Callable[[Snapshot], None]) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Start writing, after the previous snapshot is on disk; raises the previous one's error."""
        self.wait()
        self._last = self._pool.submit(self._write, snapshot)

    def wait(self) -> None:
        """Wait until everything is on disk; raises `StageFailed` on disk errors."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()


def _steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def _step(name: str) -> int:
    """Step in the name of a checkpoint in the store."""
    return int(name.partition(".")[0])
