"""Resumable state on disk and in the store: what has no true manifest does not exist.

A checkpoint is a folder named by its step:

    00000100/
        <group>.safetensors     tensors by name: parameters, optimizer, average, losses
        scalars.json            what is no tensor: optimizer, loss scaling, looks
        manifest.json           step, run, code, and each file's size and SHA-256; written last

Locally the folder is filled beside, flushed and renamed. In the store it is
`<run>/checkpoints/<step>.<number>/`, of the number of its writer's lease, and counts once the lease
names it; its files are not blobs, so that a checkpoint that is no longer kept can be deleted.
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
    """Everything that the next step hangs on, out of the training's way on the CPU."""

    step: int
    groups: Mapping[str, Mapping[str, "Tensor"]]
    """File name without its end -> tensor name -> tensor."""
    scalars: Mapping[str, Any]
    """What is no tensor, as JSON."""
    best: int | None = None
    """The best step so far, if that is looked at."""
    over: bool = False
    """Whether training ends here."""


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest, every n-th, and the best."""

    newest: int
    every: int | None = None

    def kept(self, steps: Collection[int], best: int | None) -> set[int]:
        last = sorted(steps)[-self.newest :]
        marked = [step for step in steps if self.every and step % self.every == 0]
        return {*last, *marked, *(step for step in steps if step == best)}


def save(folder: Path, snapshot: Snapshot, run: str = "", code: str = "") -> Path:
    """Write `folder/<step>`, complete or not at all; one that is there already is replaced.

    Raises `StageFailed` when the disk does not take it.
    """
    from safetensors.torch import save_file

    final = folder / f"{snapshot.step:08d}"
    beside = folder / f"{snapshot.step:08d}.partial"
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        for group, tensors in snapshot.groups.items():
            save_file(dict(tensors), beside / f"{group}.safetensors")
        (beside / SCALARS).write_text(json.dumps(snapshot.scalars, sort_keys=True), "utf-8")
        files = {}
        for path in sorted(beside.iterdir()):
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
        (beside / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        flushed(beside / MANIFEST)
        flushed(beside)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
        flushed(folder)
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


def newest(
    folder: Path, warn: Callable[[str], None] = lambda sentence: None
) -> tuple[Path, Checkpoint] | None:
    """The true checkpoint with the highest step; damaged ones are passed over with a warning."""
    for path in reversed(_steps(folder)):
        manifest = verify(path)
        if manifest is not None:
            return path, manifest
        warn(f"the checkpoint {path} is damaged and is passed over")
    return None


def load(path: Path, group: str) -> dict[str, "Tensor"]:
    """The tensors of one group, on the CPU."""
    from safetensors.torch import load_file

    found: dict[str, Tensor] = load_file(path / f"{group}.safetensors")
    return found


def scalars(path: Path) -> dict[str, Any]:
    """What of a verified checkpoint is no tensor."""
    found: dict[str, Any] = json.loads((path / SCALARS).read_text(encoding="utf-8"))
    return found


def prune(folder: Path, retention: Retention, best: int | None) -> None:
    """Delete what `retention` does not keep, and what a killed writer left behind."""
    for path in folder.glob("*.partial"):
        shutil.rmtree(path, ignore_errors=True)
    paths = _steps(folder)
    kept = retention.kept([int(path.name) for path in paths], best)
    for path in paths:
        if int(path.name) not in kept:
            # whoever is killed here leaves nothing that looks like a damaged checkpoint
            shutil.rmtree(path.rename(path.with_suffix(".partial")), ignore_errors=True)


def mirror(hold: HeldLease, folder: Path, retention: Retention) -> None:
    """Bring what counts in the store up to date with the folder, the newest first.

    What `retention` does not keep, of both, counts no longer and is deleted there, like what was
    left by whoever held the lease before. Raises `Superseded`.
    """
    store, run, number = hold.store, hold.prefix, hold.lease().number
    stored, best = {_step(name): name for name in counted_checkpoints(store, run)}, None
    for path in reversed(_steps(folder)):
        manifest = verify(path)
        if manifest is None:
            continue  # pruned or replaced meanwhile
        best = manifest.best if best is None else best
        if int(path.name) not in stored:
            name = f"{path.name}.{number}"
            with suppress(FileNotFoundError):
                _upload(store, f"{run}/{CHECKPOINTS}/{name}", path, manifest)
                stored[manifest.step] = name
                hold.update(checkpoints=tuple(sorted(stored.values())))
    kept = retention.kept(stored, best)
    names = sorted(name for step, name in stored.items() if step in kept)
    hold.update(checkpoints=tuple(names))
    _clear(store, f"{run}/{CHECKPOINTS}", names, number)


def _upload(store: Store, place: str, path: Path, manifest: Checkpoint) -> None:
    for name in (*manifest.files, MANIFEST):
        store.put_file(f"{place}/{name}", path / name)


def _clear(store: Store, place: str, names: Collection[str], number: int) -> None:
    """Delete what does not count, the manifests first.

    What a later holder may be writing stays: nobody can make anything of earlier ones count again.
    """
    for key in sorted(store.keys(f"{place}/"), key=lambda key: not key.endswith(f"/{MANIFEST}")):
        name = key.split("/")[-2]
        if name not in names and int(name.partition(".")[2] or 0) <= number:
            store.delete(key)


def download(
    store: Store, run: str, folder: Path, above: int = 0
) -> tuple[Path, Checkpoint] | None:
    """Bring the store's newest true checkpoint to `folder`; None without one beyond step `above`."""
    for name in reversed(counted_checkpoints(store, run)):
        if _step(name) <= above:
            break
        manifest = _brought(store, run, folder, name)
        if manifest is not None:
            return folder / f"{manifest.step:08d}", manifest
    return None


def fetch_step(store: Store, run: str, folder: Path, step: int) -> Path | None:
    """The true checkpoint of one step, from the folder or else from the store; None without one."""
    path = folder / f"{step:08d}"
    stored = [name for name in counted_checkpoints(store, run) if _step(name) == step]
    here = verify(path) or any(_brought(store, run, folder, name) for name in stored)
    return path if here else None


def _brought(store: Store, run: str, folder: Path, name: str) -> Checkpoint | None:
    final = folder / f"{_step(name):08d}"
    beside = final.with_suffix(".partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    with suppress(NotFound):
        for key in store.keys(f"{run}/{CHECKPOINTS}/{name}/"):
            store.get_file(key, beside / key.rsplit("/", 1)[-1])
    manifest = verify(beside)
    if manifest is None:
        shutil.rmtree(beside, ignore_errors=True)
        return None
    shutil.rmtree(final, ignore_errors=True)
    beside.rename(final)
    return manifest


class Writer:
    """Writes snapshots behind the training, in order, none left out; at most one waits."""

    def __init__(self, write: Callable[[Snapshot], None]) -> None:
        self._write = write
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None

    def submit(self, snapshot: Snapshot) -> None:
        """Hand over a snapshot, after the one before is on disk; raises what that one's writing did."""
        self.wait()
        self._last = self._pool.submit(self._write, snapshot)

    def wait(self) -> None:
        """Until everything is on disk; raises `StageFailed` when the disk did not take it."""
        if self._last is not None:
            last, self._last = self._last, None
            last.result()


def _steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdigit())


def _step(name: str) -> int:
    """Of a checkpoint in the store."""
    return int(name.partition(".")[0])
