"""The training stage: starts the training process, supervises it and stores the weights.

runs/<key>/         below paths.work
    spec.json           input of the training process; credentials stay in the environment
    progress.json       steps done
    curves.json         learning curves so far, uploaded to MLflow (see `tracking.live`)
    result.json         result of the attempt: done, preempted, failed, out of memory or lost
    validation/         a contact sheet of each validation, uploaded to MLflow
    train.log           output of the training process
    class_images.log    output of the process that generates class images in the background
    checkpoints/        see checkpoints.py; uploaded to the store under the same key
    stop                created by the user: save a checkpoint and end as preempted
    rendezvous/         rendezvous files of several ranks, during an attempt
    weights/            the exported weights, before they are stored
    lock                locked while any process works here (see leases.py)
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
from dreambooth_core.storage.blobs import get_record, put_folder
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
    PROGRESS_FILES,
    VALIDATION,
    AttemptProgress,
    AttemptResult,
    TrainingSpec,
    read_record,
    write_record,
)

POLL_SECONDS = 0.1


def train(
    config: Config, store: Store, instance: ImageSet, progress: Progress | None = None
) -> tuple[Weights, bool]:
    """Train, or find the stored weights of the same inputs; and whether they were found.

    Resumes from the newest valid checkpoint of the work folder, else of the store. Class images must
    be in the store, except with `prior.generate_in_background`. Waits while another process trains
    on the same inputs, and returns its weights. Raises `Preempted` after a stop with a saved
    checkpoint, `Superseded` if another process took the lease over, else `StageFailed` with the
    log's last lines.
    """
    planned = class_images(config, instance)

    def make(key: str, lease: HeldLease) -> Weights:
        folder = (config.paths.work / "runs" / key).resolve()

        def curves() -> LearningCurves | None:
            return read_record(folder / "curves.json", LearningCurves)

        with live.mlflow_logging(config, key, curves, folder / VALIDATION):
            settings, lost = planned_to_fit(config), 0
            while True:
                spec = _prepare(settings, lease, folder, instance, planned)
                result = _supervise(spec, lease, progress)
                if result.status == "out_of_memory":
                    settings = _smaller(settings, result.message)
                elif result.status == "lost":
                    lost = _count_lost(lost)
                else:
                    return _store_weights(store, spec, result)

    inputs = _inputs(config, instance, planned)
    return exclusive_stage(store, "runs", inputs, Weights, make, config.paths.work)


def find(config: Config, store: Store, instance: ImageSet) -> Weights | None:
    """The stored weights of these inputs; None if they were not trained."""
    inputs = _inputs(config, instance, class_images(config, instance))
    return get_record(store, f"runs/{stage_key('runs', inputs)}/result.json", Weights)


def _inputs(config: Config, instance: ImageSet, planned: Sequence[ClassImage]) -> dict[str, object]:
    """Everything that determines the weights; settings of speed and safety only are left out."""
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
        "textual_inversion": config.textual_inversion if method in INVERSIONS else None,
        "loss": config.loss,
        "optimizer": config.optimizer,
        "validation": _validation_inputs(config),
        "seed": config.seed,
    }


def _validation_inputs(config: Config) -> list[object] | None:
    """What determines the best step: with validation images also sampler and encoders."""
    models = config.evaluation
    if config.validation.every_n_steps is None:
        return None
    rules = config.validation.model_dump(mode="json", exclude={"class_images"})
    if not config.validation.prompts:
        return [rules]
    from dreambooth_core.vision.crops import detector_digest
    from dreambooth_core.vision.detectors import is_remote
    from dreambooth_core.vision.encoders import encoder_digest

    clip = encoder_digest(models.clip, models.clip_revision)
    identity = encoder_digest(models.identity, models.identity_revision)
    encoders = [clip, identity, models.preprocessing]
    if not is_remote(models.detector) and (detector := detector_digest(models.detector)):
        encoders.append(detector)
    return [rules, config.sampler, models.seed, encoders, "within a standard error"]


def planned_to_fit(config: Config, gpu: bool | None = None) -> Config:
    """With `memory.fit: auto`, the first settings that fit the device, else the config unchanged.

    `gpu`: plan for a machine with or without a GPU, default: this one.
    """
    if config.memory.fit != "auto":
        return config
    from dreambooth_core.training import memory_plan

    limit = memory_plan.device_limit(config.memory)
    if limit is None:
        return config
    return memory_plan.fit(config, base_model.base_folder(config.model), limit, gpu)


def _smaller(config: Config, message: str) -> Config:
    """Smaller settings after the device was out of memory; raises `StageFailed` if there are none."""
    from dreambooth_core.training import memory_plan

    smaller = memory_plan.next_smaller(config) if config.memory.fit == "auto" else None
    if smaller is None:
        raise StageFailed(message)
    train = smaller.train
    console.say(
        f"the device's memory was full: continuing with batch {train.batch_size} x "
        f"{train.gradient_accumulation_steps}, gradient checkpointing {train.gradient_checkpointing}"
    )
    return smaller


def _count_lost(times: int) -> int:
    """`times` + 1; raises `StageFailed` at the limit of attempts."""
    if times + 1 == TRIES:
        raise StageFailed(
            f"machines died in {TRIES} attempts at one training: check the cluster; the same command "
            "resumes from the last checkpoint in the store"
        )
    console.say("a machine died: resuming from the last checkpoint in the store")
    return times + 1


def _prepare(
    config: Config,
    lease: HeldLease,
    folder: Path,
    instance: ImageSet,
    planned: Sequence[ClassImage],
) -> TrainingSpec:
    """Find the checkpoint to resume from, remove an earlier attempt's files and write the spec."""
    saved = folder / "checkpoints"
    # several machines share only the store
    found = checkpoints.newest(saved, console.say) if config.compute.nodes == 1 else None
    local_step = found[1].step if found else 0
    found = checkpoints.download(lease.store, lease.prefix, saved, above=local_step) or found
    code = code_digest()
    if found and found[1].code != code:
        console.say(
            f"{found[0]} was written by another version of the code: resuming from it nevertheless"
        )
    spec = TrainingSpec(
        config=config,
        folder=folder,
        prefix=lease.prefix,
        holder=lease.holder,
        attempt=uuid.uuid4().hex,
        code=code,
        instance=instance,
        classes=tuple(planned),
        resume=found[0] if found else None,
        resume_step=found[1].step if found else 0,
        resume_ends=found is not None and (found[1].over or found[1].step >= config.train.steps),
    )
    for name in PROGRESS_FILES:
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "weights", ignore_errors=True)
    write_record(folder / "spec.json", spec)
    return spec


def _supervise(spec: TrainingSpec, lease: HeldLease, progress: Progress | None) -> AttemptResult:
    """Run the training process to its end; its result file counts, not its exit status."""
    log = spec.folder / "train.log"
    before = log.stat().st_size if log.exists() else 0
    with ExitStack() as children:
        children.enter_context(_rendezvous(spec.folder / launcher.RENDEZVOUS))
        generator = children.enter_context(_class_images_in_background(spec))
        child = children.enter_context(
            supervised(
                _command(spec),
                env=launcher.environment(spec.config.train.num_processes),
                log=log,
                grace=GRACE_SECONDS,
                keep_open=(lease.lock,),
            )
        )
        shown: AttemptProgress | None = None
        while child.poll() is None:
            time.sleep(POLL_SECONDS)
            lease.check()
            if generator is not None and generator.poll() not in (None, 0):
                raise StageFailed(
                    "generating class images in the background failed; its log ends: "
                    f"{last_lines(spec.folder / 'class_images.log')}"
                )
            current = read_record(spec.folder / "progress.json", AttemptProgress)
            if progress is not None and current is not None and current != shown:
                progress(current.step, current.total, current.label)
                shown = current
    lease.lease()  # this process may have been suspended: check the lease before trusting the result
    return _result(spec, child.returncode, log, before)


def _result(spec: TrainingSpec, status: int, log: Path, before: int) -> AttemptResult:
    """The result file; raises unless the attempt is done, out of memory or lost."""
    result = read_record(spec.folder / "result.json", AttemptResult)
    printed = log.read_bytes()[before:].decode(errors="replace")
    if result is None or result.attempt != spec.attempt:
        if STALLED in printed:
            minutes = spec.config.checkpoints.stall_minutes
            raise StageFailed(
                f"training stalled: no step for checkpoints.stall_minutes {minutes:g}; the stacks "
                f"are in {log}; the same command resumes from the last checkpoint"
            )
        raise StageFailed(_exit_message(spec, _signal_of(status, printed) or status, log))
    if result.status == "failed":
        # rank 0 reports only the lost connection to the killed rank
        killed = _signal_of(status, printed) == -signal.SIGKILL
        raise StageFailed(_exit_message(spec, -signal.SIGKILL, log) if killed else result.message)
    if result.status == "preempted":
        raise Preempted(
            f"training was stopped, as {result.message}, and is saved at step {result.step} of "
            f"{spec.config.train.steps}; the same command resumes from there"
        )
    return result


def _signal_of(status: int, printed: str) -> int | None:
    """The negative signal that ended the process or, by torchrun's report, one of its ranks; else None."""
    if status < 0:
        return status
    found = [int(code) for code in re.findall(r"exitcode\s*: (-\d+)", printed)]
    return min(found, key=lambda code: code != -signal.SIGKILL, default=None)


def _exit_message(spec: TrainingSpec, status: int, log: Path) -> str:
    """Error message for a process without a result; a negative status is the signal that ended it."""
    last = read_record(spec.folder / "progress.json", AttemptProgress)
    where = f"at step {last.step if last else spec.resume_step} of {spec.config.train.steps}"
    if status != -signal.SIGKILL:
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        return (
            f"training ended {how} {where} without a result; the same command resumes from the "
            f"last checkpoint; its log {log} ends: {last_lines(log)}"
        )
    return (
        f"training was ended by signal 9 {where}, as the kernel does when memory is full (see `dmesg`): "
        "lower train.batch_size or model.resolution, set train.gradient_checkpointing, or end other "
        "programs; the same command resumes from the last checkpoint"
    )


@contextmanager
def _rendezvous(folder: Path) -> Iterator[None]:
    """An empty folder within the block; rendezvous files of an earlier attempt would block the ranks."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _class_images_in_background(spec: TrainingSpec) -> Iterator["Popen[bytes] | None"]:
    """The process that generates class images, within the block; None unless configured."""
    if not spec.config.prior.generate_in_background:
        yield None
        return
    command = [
        sys.executable,
        "-m",
        "dreambooth_core.training.class_images_process",
        str(spec.folder / "spec.json"),
    ]
    log = spec.folder / "class_images.log"
    with supervised(
        command, env=launcher.environment(spec.config.train.num_processes), log=log
    ) as generator:
        yield generator


def _command(spec: TrainingSpec) -> Sequence[str]:
    file = spec.folder / "spec.json"
    if spec.config.compute.nodes > 1:
        return [sys.executable, "-m", "dreambooth_core.training.multi_node", str(file)]
    return launcher.command(file, spec.config.train.num_processes, spec.attempt)


def _store_weights(store: Store, spec: TrainingSpec, result: AttemptResult) -> Weights:
    """Upload the weights; the local copy moves to the folder that sampling reads."""
    folder = spec.folder / "weights"
    files = put_folder(store, folder)
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
        steps=result.step,
        chosen_step=result.chosen_step,
        resumed_from=spec.resume_step,
        class_images_used=result.class_images_used,
        steps_per_second=result.steps_per_second,
        peak_memory_bytes=result.peak_memory_bytes,
        **dict(result.curves),
    )
