"""Training as a stage: the parent starts one process per run and watches it; the child trains.

runs/<key>/         below paths.work
    spec.json           what the child is to do; no secrets, those stay in the environment
    progress.json       how far it is
    course.json         how it went so far; MLflow is told (see `live`)
    result.json         how the attempt ended: done, preempted, failed or out of memory
    validation/         a contact sheet of each validation; MLflow gets them as well
    train.log           what it printed
    priors.log          what the process printed that makes class images alongside
    checkpoints/        see checkpoints.py; copied to the store under the same key
    stop                made by a person: save, and end as preempted
    meeting/            where several ranks find one another; gone when they are
    weights/            the result, before it is stored
    lock                held while any process works here (see leases.py)
"""

import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen

from dreambooth_core import console
from dreambooth_core.config import ADAPTERS, INVERSIONS, Config
from dreambooth_core.console import Progress
from dreambooth_core.diffusion import base_model
from dreambooth_core.digests import digest_json
from dreambooth_core.errors import Preempted, StageFailed
from dreambooth_core.runtime.engines import TRIES
from dreambooth_core.runtime.processes import last_lines, supervised
from dreambooth_core.storage.blobs import get_record, put_blob
from dreambooth_core.storage.code_version import code_digest, code_version
from dreambooth_core.storage.leases import HeldLease
from dreambooth_core.storage.records import ImageSet, LearningCurves, Weights
from dreambooth_core.storage.stage_cache import exclusive_stage, stage_key
from dreambooth_core.storage.stores import Store
from dreambooth_core.tracking import live
from dreambooth_core.training import checkpoints, launcher
from dreambooth_core.training.class_images import ClassImage, class_images
from dreambooth_core.training.preemption import STALLED
from dreambooth_core.training.spec import (
    GRACE_SECONDS,
    VALIDATION,
    AttemptProgress,
    AttemptResult,
    TrainingSpec,
    read_record,
    write_record,
)

LOOK_SECONDS = 0.1


def train(
    config: Config, store: Store, instance: ImageSet, progress: Progress | None = None
) -> tuple[Weights, bool]:
    """Train, or take the weights that the same inputs gave before; and whether they were there.

    Goes on from the newest true checkpoint, of the work folder or else of the store. The class
    images must be in the store, or come with `prior.generate_in_background`. While another process
    trains on the same inputs, its weights are waited for. Raises `Preempted` when the training was
    asked to stop and has saved its state, `Superseded` when another process took it over, else
    `StageFailed` with the log's last lines.
    """
    planned = class_images(config, instance)

    def make(key: str, hold: HeldLease) -> Weights:
        folder = (config.paths.work / "runs" / key).resolve()

        def course() -> LearningCurves | None:
            return read_record(folder / "course.json", LearningCurves)

        with live.mlflow_logging(config, key, course, folder / VALIDATION):
            settings, lost = planned_to_fit(config), 0
            while True:
                spec = _prepare(settings, hold, folder, instance, planned)
                outcome = _watch(spec, hold, progress)
                if outcome.status == "out_of_memory":
                    settings = _smaller(settings, outcome.message)
                elif outcome.status == "lost":
                    lost = _lost_again(lost)
                else:
                    return _stored(store, spec, outcome)

    inputs = _inputs(config, instance, planned)
    return exclusive_stage(store, "runs", inputs, Weights, make, config.paths.work)


def find(config: Config, store: Store, instance: ImageSet) -> Weights | None:
    """The weights that these inputs gave before; None when they were not trained on."""
    inputs = _inputs(config, instance, class_images(config, instance))
    return get_record(store, f"runs/{stage_key('runs', inputs)}/result.json", Weights)


def _inputs(config: Config, instance: ImageSet, planned: Sequence[ClassImage]) -> dict[str, object]:
    """Everything that decides the weights; what only decides speed or safety is left out."""
    method = config.train.method
    return {
        "family": config.model.family,
        "base": base_model.base_digest(config.model),
        "model": [config.model.resolution, config.model.quantize],
        "buckets": [
            config.dataset.buckets,
            config.dataset.bucket_step,
            config.dataset.bucket_ratio,
        ],
        "instance": instance.digest,
        "classes": planned,
        "prior": [config.prior.enabled, config.prior_target, config.prior.loss_weight],
        "prompts": [
            [subject.identifier, subject.fill(subject.instance_prompt)]
            for subject in config.subjects
        ]
        + [[subject.class_noun, subject.fill(subject.class_prompt)] for subject in config.subjects],
        "train": config.train,
        "adapter": config.adapter if method in ADAPTERS else None,
        "inversion": config.textual_inversion if method in INVERSIONS else None,
        "loss": config.loss,
        "optimizer": config.optimizer,
        "choosing": _what_looks_decide(config),
        "seed": config.seed,
    }


def _what_looks_decide(config: Config) -> list[object] | None:
    """What makes one step the best: for a look at images also how they are drawn and measured."""
    eyes = config.evaluation
    if config.validation.every_n_steps is None:
        return None
    rules = config.validation.model_dump(mode="json", exclude={"class_images"})
    if not config.validation.prompts:
        return [rules]
    from dreambooth_core.vision.crops import detector_digest
    from dreambooth_core.vision.encoders import encoder_digest

    clip = encoder_digest(eyes.clip, eyes.clip_revision)
    identity = encoder_digest(eyes.identity, eyes.identity_revision)
    seen = [clip, identity, eyes.preprocessing]
    if (finder := detector_digest(eyes.detector)) is not None:
        seen.append(finder)
    return [rules, config.sampler, eyes.seed, seen, "within a standard error"]


def planned_to_fit(config: Config) -> Config:
    """With `memory.fit: auto`, the first plan that fits the device, else the config as it is."""
    if config.memory.fit != "auto":
        return config
    from dreambooth_core.training import memory_plan
    from dreambooth_core.training.precision import resolved_precision

    limit = memory_plan.device_limit(config.memory)
    if limit is None:
        return config
    base = base_model.base_folder(config.model)
    return memory_plan.fit(config, base, resolved_precision(config.train.precision), limit)


def _smaller(config: Config, message: str) -> Config:
    """The next plan after the device's memory was full; raises `StageFailed` when there is none."""
    from dreambooth_core.training import memory_plan

    smaller = memory_plan.next_smaller(config) if config.memory.fit == "auto" else None
    if smaller is None:
        raise StageFailed(message)
    train = smaller.train
    console.say(
        f"the device's memory was full: going on with batch {train.batch_size} x "
        f"{train.gradient_accumulation_steps}, gradient checkpointing {train.gradient_checkpointing}"
    )
    return smaller


def _lost_again(times: int) -> int:
    """One more than so many; raises `StageFailed` for the last."""
    if times + 1 == TRIES:
        raise StageFailed(
            f"machines died in {TRIES} attempts at one training: look after the cluster; the same "
            "command goes on from the last checkpoint in the store"
        )
    console.say("a machine was lost: going on from the last checkpoint in the store")
    return times + 1


def _prepare(
    config: Config,
    hold: HeldLease,
    folder: Path,
    instance: ImageSet,
    planned: Sequence[ClassImage],
) -> TrainingSpec:
    """Find the place to go on from and write the spec; nothing of an earlier attempt misleads."""
    saved = folder / "checkpoints"
    # other machines reach what is in the store, and nothing else
    found = checkpoints.newest(saved, console.say) if config.compute.nodes == 1 else None
    reached = found[1].step if found else 0
    found = checkpoints.download(hold.store, hold.prefix, saved, above=reached) or found
    code = code_digest()
    if found and found[1].code != code:
        console.say(f"{found[0]} was written by other source: going on from it all the same")
    spec = TrainingSpec(
        config=config,
        folder=folder,
        prefix=hold.prefix,
        holder=hold.holder,
        attempt=uuid.uuid4().hex,
        code=code,
        instance=instance,
        classes=tuple(planned),
        resume=found[0] if found else None,
        resume_step=found[1].step if found else 0,
        resume_ends=found is not None and (found[1].over or found[1].step >= config.train.steps),
    )
    for name in ("progress.json", "course.json", "result.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "weights", ignore_errors=True)
    write_record(folder / "spec.json", spec)
    return spec


def _watch(spec: TrainingSpec, hold: HeldLease, progress: Progress | None) -> AttemptResult:
    """Run the child to its end; what it says about itself counts, not its exit status."""
    log = spec.folder / "train.log"
    before = log.stat().st_size if log.exists() else 0
    with ExitStack() as children:
        children.enter_context(_meeting(spec.folder / launcher.MEETING))
        maker = children.enter_context(_class_images_alongside(spec))
        child = children.enter_context(
            supervised(
                _command(spec),
                env=launcher.environment(spec.config.train.num_processes),
                log=log,
                grace=GRACE_SECONDS,
                keep_open=(hold.lock,),
            )
        )
        shown: AttemptProgress | None = None
        while child.poll() is None:
            time.sleep(LOOK_SECONDS)
            hold.check()
            if maker is not None and maker.poll() not in (None, 0):
                raise StageFailed(
                    "making class images alongside broke; its log ends: "
                    f"{last_lines(spec.folder / 'priors.log')}"
                )
            told = read_record(spec.folder / "progress.json", AttemptProgress)
            if progress is not None and told is not None and told != shown:
                progress(told.step, told.total, told.label)
                shown = told
    hold.lease()  # whoever slept through the training's end hears of a takeover before believing it
    return _verdict(spec, child.returncode, log, before)


def _verdict(spec: TrainingSpec, status: int, log: Path, before: int) -> AttemptResult:
    """The outcome that the child left; raises for one that is no end of the training."""
    outcome = read_record(spec.folder / "result.json", AttemptResult)
    printed = log.read_bytes()[before:].decode(errors="replace")
    if outcome is None or outcome.attempt != spec.attempt:
        if STALLED in printed:
            minutes = spec.config.checkpoints.stall_minutes
            raise StageFailed(
                f"training stalled: no step for checkpoints.stall_minutes {minutes:g}; the stacks "
                f"are in {log}; the same command goes on from the last checkpoint"
            )
        raise StageFailed(_ended(spec, _signal_of(status, printed) or status, log))
    if outcome.status == "failed":
        # the first rank only knows that it lost its connection to the one that was killed
        killed = _signal_of(status, printed) == -signal.SIGKILL
        raise StageFailed(_ended(spec, -signal.SIGKILL, log) if killed else outcome.message)
    if outcome.status == "preempted":
        raise Preempted(
            f"training was stopped, as {outcome.message}, and is saved at step {outcome.step} of "
            f"{spec.config.train.steps}; the same command goes on from there"
        )
    return outcome


def _signal_of(status: int, printed: str) -> int | None:
    """The signal that ended the trainer or, as torchrun's report says, one of its ranks; negative."""
    if status < 0:
        return status
    found = [int(code) for code in re.findall(r"exitcode\s*: (-\d+)", printed)]
    return min(found, key=lambda code: code != -signal.SIGKILL, default=None)


def _ended(spec: TrainingSpec, status: int, log: Path) -> str:
    """The sentence about a trainer that left no result; a negative status is the signal that ended it."""
    told = read_record(spec.folder / "progress.json", AttemptProgress)
    where = f"at step {told.step if told else spec.resume_step} of {spec.config.train.steps}"
    if status != -signal.SIGKILL:
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return (
            f"the trainer ended {how} {where} and left no result; the same command goes on from the "
            f"last checkpoint; its log {log} ends: {last_lines(log)}"
        )
    return (
        f"the trainer was ended by signal 9 {where}, as the kernel does when memory is full (`dmesg` "
        "tells): lower train.batch_size or model.resolution, set train.gradient_checkpointing, or end "
        "other programs; the last checkpoint is kept, and the same command goes on from it"
    )


@contextmanager
def _meeting(folder: Path) -> Iterator[None]:
    """An empty folder while the ranks live; one of an earlier attempt would mislead them."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _class_images_alongside(spec: TrainingSpec) -> Iterator["Popen[bytes] | None"]:
    """A process that makes the class images, for as long as the block runs; None without."""
    if not spec.config.prior.generate_in_background:
        yield None
        return
    command = [
        sys.executable,
        "-m",
        "dreambooth_core.training.class_images_process",
        str(spec.folder / "spec.json"),
    ]
    log = spec.folder / "priors.log"
    with supervised(
        command, env=launcher.environment(spec.config.train.num_processes), log=log
    ) as maker:
        yield maker


def _command(spec: TrainingSpec) -> Sequence[str]:
    file = spec.folder / "spec.json"
    if spec.config.compute.nodes > 1:
        return [sys.executable, "-m", "dreambooth_core.training.multi_node", str(file)]
    return launcher.command(file, spec.config.train.num_processes, spec.attempt)


def _stored(store: Store, spec: TrainingSpec, outcome: AttemptResult) -> Weights:
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
        key=spec.folder.name,
        code=code_version(),
        method=spec.config.train.method,
        files=files,
        steps=outcome.step,
        chosen_step=outcome.chosen_step,
        resumed_from=spec.resume_step,
        class_images_used=outcome.class_images_used,
        steps_per_second=outcome.steps_per_second,
        peak_memory_bytes=outcome.peak_memory_bytes,
        **dict(outcome.course),
    )
