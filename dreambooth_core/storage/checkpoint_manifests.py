"""Manifests of checkpoints in the store, and their listing."""

from dreambooth_core.digests import digest_of
from dreambooth_core.storage import leases
from dreambooth_core.storage.records import Blob, Record
from dreambooth_core.storage.stores import Store


class LineageCheckpoint(Record):
    """A checkpoint that is still in the store."""

    step: int
    digest: str
    """Of its manifest."""
    code: str
    """Digest of the source that wrote it."""


CHECKPOINTS = "checkpoints"


MANIFEST = "manifest.json"


class Checkpoint(Record):
    """The manifest: what a checkpoint consists of, and what wrote it."""

    step: int
    """Optimizer steps that are done."""
    run: str
    """Key of the training: digest of the config and of everything else that decides the weights."""
    code: str
    """Digest of the source that wrote it."""
    best: int | None = None
    over: bool = False
    files: dict[str, Blob]
    """File name -> size and digest."""


def counted_checkpoints(store: Store, run: str) -> list[str]:
    """Names of a run's checkpoints in the store, the newest last: those its lease names, if there."""
    lease = leases.read(store, run)
    keys = store.keys(f"{run}/{CHECKPOINTS}/") if lease else iter(())
    there = {key.split("/")[-2] for key in keys if key.endswith(f"/{MANIFEST}")}
    return sorted(there.intersection(lease.checkpoints if lease else ()))


def checkpoints_of(store: Store, key: str) -> tuple[LineageCheckpoint, ...]:
    """A training's, in their order; none for a training without a key."""
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
