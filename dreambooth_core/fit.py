"""Training as a stage: the parent starts one process per run and watches it; the child trains.

runs/<key>/         below paths.work
    spec.json           what the child is to do; no secrets, those stay in the environment
    progress.json       how far it is
    result.json         how the attempt ended: done, preempted or failed
    train.log           what it printed
    checkpoints/        see checkpoints.py; copied to the store under the same key
    weights/            the result, before it is stored
"""

import fcntl
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from dreambooth_core import bases, checkpoints
from dreambooth_core.blobs import digest_json, put_blob
from dreambooth_core.config import Config
from dreambooth_core.errors import ConfigError, Preempted, StageFailed
from dreambooth_core.processes import last_lines, supervised
from dreambooth_core.records import ImageSet, Progress, Record, Weights
from dreambooth_core.stages import once
from dreambooth_core.storage import Store

LOOK_SECONDS = 0.1
GRACE_SECONDS = 25.0
"""Between the order to stop and the end by force: Prefect gives a cancelled flow 30 s in all."""
LOCK_SECONDS = 60.0


R = TypeVar("R", bound=Record)


class Spec(Record):
    """What the child needs; a file, so that it can be read by people and run again by hand."""

    config: Config
    folder: Path
    prefix: str
    """The run's place in the store, `runs/<key>`."""
    attempt: str
    instance: ImageSet
    classes: ImageSet | None
    resume: Path | None
    """A verified checkpoint to go on from."""
    resume_step: int = 0


class Outcome(Record):
    """How an attempt ended."""

    attempt: str
    status: Literal["done", "preempted", "failed"]
    message: str = ""
    step: int = 0
    losses: tuple[tuple[int, float, float | None], ...] = ()


class Standing(Record):
    """How far an attempt is."""

    step: int
    total: int
    label: str


def train(
    config: Config,
    store: Store,
    instance: ImageSet,
    classes: ImageSet | None,
    progress: Progress | None = None,
) -> tuple[Weights, bool]:
    """Train, or take the weights that the same inputs gave before; and whether they were there.

    Goes on from the newest true checkpoint, of the work folder or else of the store. Raises
    `Preempted` when the training was asked to stop and has saved its state, `ConfigError` for a
    batch that cannot be shared among the processes, else `StageFailed` with the log's last lines.
    """
    options = config.train
    if options.batch_size % options.processes:
        raise ConfigError(
            f"train.batch_size {options.batch_size} cannot be shared among train.processes "
            f"{options.processes}: make it a multiple"
        )

    def make(key: str) -> Weights:
        folder = (config.paths.work / "runs" / key).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as lock:
            spec = _prepare(config, store, folder, instance, classes)
            outcome = _watch(spec, lock, progress)
            return _stored(store, spec, outcome)

    return once(store, "runs", _inputs(config, instance, classes), Weights, make)


def _inputs(config: Config, instance: ImageSet, classes: ImageSet | None) -> dict[str, object]:
    """Everything that decides the weights; what only decides speed or safety is left out."""
    passing = {"checkpoint_every", "keep_checkpoints", "processes"}
    lora = config.lora if config.train.method == "lora" else None
    return {
        "family": config.model.family,
        "base": bases.base_digest(config.model),
        "resolution": config.model.resolution,
        "instance": instance.digest,
        "classes": None if classes is None else classes.digest,
        "prior_weight": None if classes is None else config.prior.weight,
        "prompts": [
            config.subject.fill(config.subject.instance_prompt),
            config.subject.fill(config.subject.class_prompt),
        ],
        "train": config.train.model_dump(mode="json", exclude=passing),
        "lora": lora,
        "seed": config.seed,
    }


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """One training per run folder; the lock is passed on, so that it lasts as long as the child."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise StageFailed(
                    f"another process trains in {folder}; wait until it has ended, then run again"
                )
            time.sleep(LOOK_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _prepare(
    config: Config, store: Store, folder: Path, instance: ImageSet, classes: ImageSet | None
) -> Spec:
    """Find the place to go on from and write the spec; nothing of an earlier attempt misleads."""
    prefix, saved = f"runs/{folder.name}", folder / "checkpoints"
    found = checkpoints.newest(saved) or checkpoints.download(store, f"{prefix}/checkpoints", saved)
    spec = Spec(
        config=config,
        folder=folder,
        prefix=prefix,
        attempt=uuid.uuid4().hex,
        instance=instance,
        classes=classes,
        resume=found[0] if found else None,
        resume_step=found[1].step if found else 0,
    )
    for name in ("progress.json", "result.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "weights", ignore_errors=True)
    write_record(folder / "spec.json", spec)
    return spec


def _watch(spec: Spec, lock: int, progress: Progress | None) -> Outcome:
    """Run the child to its end; what it says about itself counts, not its exit status."""
    log = spec.folder / "train.log"
    with supervised(
        _command(spec), env=_environment(spec), log=log, grace=GRACE_SECONDS, hold=(lock,)
    ) as child:
        shown: Standing | None = None
        while child.poll() is None:
            time.sleep(LOOK_SECONDS)
            standing = read_record(spec.folder / "progress.json", Standing)
            if progress is not None and standing is not None and standing != shown:
                progress(standing.step, standing.total, standing.label)
                shown = standing
    outcome = read_record(spec.folder / "result.json", Outcome)
    if outcome is None or outcome.attempt != spec.attempt:
        raise StageFailed(
            f"the training process ended with status {child.returncode} and left no result; "
            f"its log {log} ends: {last_lines(log)}"
        )
    if outcome.status == "failed":
        raise StageFailed(outcome.message)
    if outcome.status == "preempted":
        raise Preempted(
            f"training was asked to stop and is saved at step {outcome.step} of "
            f"{spec.config.train.steps}; the same command goes on from there"
        )
    return outcome


def _command(spec: Spec) -> Sequence[str]:
    """One rank is started directly; torchrun would add seconds and a port open to the network."""
    module = ["-m", "dreambooth_core.attempt", str(spec.folder / "spec.json")]
    ranks = spec.config.train.processes
    if ranks == 1:
        return [sys.executable, *module]
    meeting = spec.folder / f"meeting-{spec.attempt}"
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", str(meeting), "--rdzv-conf"),
        *("store_type=file", "--rdzv-id", spec.attempt, "--local-addr", "127.0.0.1", *module),
    ]


def _environment(spec: Spec) -> dict[str, str]:
    """Ours, with the cores shared among the ranks and the libraries kept quiet and at home."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, (cores or 1) // spec.config.train.processes)
    defaults = {
        "OMP_NUM_THREADS": str(threads),
        "TRANSFORMERS_VERBOSITY": "error",
        "DIFFUSERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return {**defaults, **os.environ}


def _stored(store: Store, spec: Spec, outcome: Outcome) -> Weights:
    """Put the weights' files into the store; the local copy becomes the one for sampling."""
    folder = spec.folder / "weights"
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): put_blob(store, path) for path in paths}
    digest = digest_json({name: blob.sha256 for name, blob in files.items()})
    local = spec.config.paths.work / "models" / digest
    if not local.exists():
        local.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, local)
    return Weights(
        uri=f"{store.uri}/{spec.prefix}/result.json",
        digest=digest,
        method=spec.config.train.method,
        files=files,
        steps=spec.config.train.steps,
        losses=outcome.losses,
        resumed_from=spec.resume_step,
    )


def write_record(path: Path, record: Record) -> None:
    """Replace a small file in one go: a reader sees the old one or the new one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(record.model_dump(mode="json"), indent=1), encoding="utf-8")
    beside.replace(path)


def read_record(path: Path, kind: type[R]) -> R | None:
    """A small file's record; None when there is none or it is not one."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
