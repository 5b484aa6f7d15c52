"""Manifests of checkpoints in the store, and their listing."""

from dreambooth_core.digests import digest_of
from dreambooth_core.storage import leases
from dreambooth_core.storage.records import Blob, Record
from dreambooth_core.storage.stores import Store


class LineageCheckpoint(Record):
    """A checkpoint in the store."""

    step: int
    digest: str
    """SHA-256 of the manifest."""
    code: str
    """Digest of the source that wrote it."""


CHECKPOINTS = "checkpoints"
MANIFEST = "manifest.json"


class Checkpoint(Record):
    """Manifest of a checkpoint: its files and the code that wrote it."""

    step: int
    """Optimizer steps taken."""
    run: str
    """Training key: digest of everything that decides the weights."""
    code: str
    """Digest of the source that wrote it."""
    best: int | None = None
    """Best step by validation so far."""
    over: bool = False
    """Whether early stopping ended the training at this step."""
    files: dict[str, Blob]
    """File name -> size and digest."""


def counted_checkpoints(store: Store, run: str) -> list[str]:
    """Names of the checkpoints that the training's lease lists and the store has, in ascending order."""
    lease = leases.read(store, run)
    if lease is None:
        return []
    keys = store.keys(f"{run}/{CHECKPOINTS}/")
    stored = {key.split("/")[-2] for key in keys if key.endswith(f"/{MANIFEST}")}
    return sorted(stored.intersection(lease.checkpoints))


def checkpoints_of(store: Store, key: str) -> tuple[LineageCheckpoint, ...]:
    """Checkpoints of the training with this key, in the order of steps; empty for an empty key."""
    if not key:
        return ()
    run, steps = f"runs/{key}", []
    for name in counted_checkpoints(store, run):
        data = store.get(f"{run}/{CHECKPOINTS}/{name}/{MANIFEST}")
        manifest = Checkpoint.model_validate_json(data)
        steps.append(
            LineageCheckpoint(step=manifest.step, digest=digest_of(data), code=manifest.code)
        )
    return tuple(sorted(steps, key=lambda step: step.step))
