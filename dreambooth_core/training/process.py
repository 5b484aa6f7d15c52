"""One attempt at training: `python -m dreambooth_core.training.process SPEC.json`, a process per rank.

Asked to stop (see `preemption`), it finishes the step, saves, and says so in the result file.
"""

import logging
import os
import resource
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dreambooth_core import telemetry
from dreambooth_core.data.contact_sheets import sheet_of
from dreambooth_core.errors import DreamBoothError, Preempted, StageFailed, one_line
from dreambooth_core.storage.leases import HeldLease
from dreambooth_core.storage.records import LearningCurves
from dreambooth_core.storage.stores import written_beside
from dreambooth_core.training import launcher
from dreambooth_core.training.preemption import Stop, Watchdog
from dreambooth_core.training.spec import (
    VALIDATION,
    AttemptProgress,
    AttemptResult,
    TrainingSpec,
    read_record,
    write_record,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreambooth_core.training.callback import TrainingCallback
    from dreambooth_core.training.checkpoints import Snapshot
    from dreambooth_core.training.inputs import TrainingContext, TrainingInputs
    from dreambooth_core.training.module import DreamBooth

FULL = ("can't allocate memory", "could not create a primitive")
"""How the CPU's allocator, and oneDNN, which gives no reasons, say that memory is full."""


def main(arguments: list[str]) -> int:
    """Train what the spec says; 0 done, 75 preempted, 1 failed. Rank 0 writes the result file.

    The other ranks answer 0 when preempted, since torchrun ends all once one answers otherwise.
    """
    spec = read_record(Path(arguments[0]), TrainingSpec) if len(arguments) == 1 else None
    if spec is None:
        print("usage: python -m dreambooth_core.training.process SPEC.json", file=sys.stderr)
        return 2
    # what it warns of, a faster kernel for the CPU, would be the last line of many a log
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    rules = spec.config.checkpoints
    stop = Stop(spec.folder / "stop", rules.max_minutes)
    try:
        outcome = _attempt(spec, stop, Watchdog(rules.stall_minutes))
    except DreamBoothError as error:
        outcome = _failed(spec, str(error))
    except Exception as error:
        traceback.print_exc()
        outcome = _failed(spec, _sentence(spec, error), out_of_memory=_is_out_of_memory(error))
    if _rank() == 0:
        write_record(spec.folder / "result.json", outcome)
    codes = {"done": 0, "preempted": Preempted.exit_code if _rank() == 0 else 0}
    return codes.get(outcome.status, 1)


def _attempt(spec: TrainingSpec, stop: Stop, watchdog: Watchdog) -> AttemptResult:
    from dreambooth_core.tracking.loggers import Loggers
    from dreambooth_core.training import background, callback, checkpoints, distributed, validation

    distributed.join(
        spec.folder / launcher.MEETING / "ranks", spec.config.checkpoints.stall_minutes
    )
    place, module, supply = _prepared(spec, watchdog)
    hold, folder = HeldLease(place.store, spec.prefix, spec.holder), spec.folder / "checkpoints"
    rules = spec.config.checkpoints
    retention = checkpoints.Retention(rules.keep_last, rules.keep_every_n_steps)
    behind = background.Background(
        lambda: checkpoints.mirror(hold, folder, retention), "uploading checkpoints"
    )

    def write(snapshot: "Snapshot") -> None:
        checkpoints.save(folder, snapshot, run=folder.parent.name, code=spec.code)
        checkpoints.prune(folder, retention, snapshot.best)
        behind.ask()

    loggers = Loggers(spec.config, spec.folder.name if _rank() == 0 else None)

    def show(course: LearningCurves) -> None:
        write_record(spec.folder / "course.json", course)
        loggers.log(course)

    writer = checkpoints.Writer(write)
    looks = spec.config.validation.every_n_steps is not None
    keeping = callback.TrainingCallback(
        callback.Hooks(
            stop=stop,
            say=lambda step, figures: _say(spec, step, figures),
            save=writer.submit,
            settle=writer.wait,
            show=show,
            look=validation.Validator(
                spec.config, place, supply.stable, spec.instance, partial(_keep, spec.folder)
            )
            if looks
            else None,
            beat=watchdog.beat,
            resume=spec.resume,
        )
    )
    _run(spec, module, supply, keeping, stop)
    distributed.leave()
    writer.wait()
    watchdog.close()
    outcome = _outcome(spec, module, supply, keeping)
    if _rank() == 0:
        show(outcome.course)
        loggers.close(finished=outcome.status == "done")
    if _rank() == 0 and outcome.status == "done":
        _export(spec, place, module, outcome)
    elif _rank() == 0:
        # said before the upload ends, for which whoever stops us may not wait
        write_record(spec.folder / "result.json", outcome)
    behind.close()
    return outcome


def _prepared(
    spec: TrainingSpec, watchdog: Watchdog
) -> tuple["TrainingContext", "DreamBooth", "TrainingInputs"]:
    """Everything in memory that the steps need, and nothing more."""
    import torch

    from dreambooth_core.diffusion import adapters, base_model
    from dreambooth_core.diffusion.families import load_family
    from dreambooth_core.storage.stores import open_store
    from dreambooth_core.training import distributed, inputs

    config, device = spec.config, torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    family, base = load_family(config.model.family), base_model.base_folder(config.model)
    place = inputs.TrainingContext(base, open_store(config.storage), device, _rank(), watchdog.beat)
    names = adapters.trained_components(family, config)
    moving_text = any(name in family.text_encoders for name in names)
    with distributed.first_ahead():
        images = (spec.instance, spec.classes)
        gathered = inputs.prepare_inputs(config, family, place, images, moving_text)
    module = _loaded(spec, place, sharded=config.train.strategy == "fsdp2")
    if gathered.conditioning is None:
        module.set_prompts(family.tokenize(module.parts, gathered.prompts), encodes=True)
    else:
        module.set_prompts(gathered.conditioning, encodes=False)
    return place, module, gathered


def _loaded(spec: TrainingSpec, place: "TrainingContext", *, sharded: bool) -> "DreamBooth":
    """The base with what moves, on the CPU; in shards on the device."""
    from dreambooth_core.diffusion import adapters
    from dreambooth_core.diffusion.families import channels_last, load_family, only
    from dreambooth_core.training import fsdp, precision, quantization
    from dreambooth_core.training import module as training

    config, base = spec.config, place.base
    family = load_family(config.model.family)
    moving = {*adapters.trained_components(family, config)}
    text = family.text_encoders if moving & {*family.text_encoders} else ()
    numbers = precision.frozen_numbers(config)
    parts = family.load(base, only(base, family.denoiser, *text), numbers)
    if not sharded:  # which have no layout but the plain one
        channels_last(parts[family.denoiser])
    if config.model.quantize != "none":
        parts = quantization.quantize(parts, family, config.model.quantize)
    trained = adapters.prepare(family, parts, config)
    if sharded:
        trained = fsdp.shard(parts, trained, place.device)
    return training.DreamBooth(family, parts, trained, config)


def _run(
    spec: TrainingSpec,
    module: "DreamBooth",
    supply: "TrainingInputs",
    keeping: "TrainingCallback",
    stop: Stop,
) -> None:
    """Take the steps that are left; signals wait until our handler stands over Lightning's."""
    from dreambooth_core.training import callback, loop

    if spec.resume is not None and spec.resume_ends:
        module.configure_optimizers()
        keeping.standing.go_on_from(callback.restore(spec.resume, module))
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, stop.signals)

    def ready() -> None:
        stop.install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop.signals)

    keeping.orders.ready = ready
    try:
        loop.fit(module, supply.steps, keeping, spec.resume_step)
    finally:
        ready()


def _outcome(
    spec: TrainingSpec, module: "DreamBooth", supply: "TrainingInputs", keeping: "TrainingCallback"
) -> AttemptResult:
    from dreambooth_core.training.best_step import best_step

    standing, total = keeping.standing, spec.config.train.steps
    if standing.stopped_at is not None:
        return AttemptResult(
            attempt=spec.attempt,
            status="preempted",
            step=standing.stopped_at,
            message=standing.reason,
            course=keeping.course(module, standing.stopped_at, ended=False),
        )
    taken = standing.over_at or (spec.resume_step if spec.resume_ends else total)
    best = best_step(standing.validations, spec.config.validation)
    drawn = {index for micro in range(len(supply.steps)) for index in supply.steps.needed(micro)}
    return AttemptResult(
        attempt=spec.attempt,
        status="done",
        step=taken,
        chosen_step=best.step if best else taken,
        course=keeping.course(module, taken, ended=True),
        class_images_used=len(drawn),
        steps_per_second=standing.steps_per_second,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _export(
    spec: TrainingSpec, place: "TrainingContext", module: "DreamBooth", outcome: AttemptResult
) -> None:
    """Write the weights of the chosen step, as they are served."""
    from dreambooth_core.diffusion import adapters
    from dreambooth_core.training import callback, checkpoints

    step, sharded = outcome.chosen_step, spec.config.train.strategy == "fsdp2"
    if sharded:
        module = _loaded(spec, place, sharded=False)
        module.configure_optimizers()
    if sharded or step != outcome.step:
        folder = spec.folder / "checkpoints"
        chosen = checkpoints.fetch_step(place.store, spec.prefix, folder, step)
        if chosen is None:
            raise StageFailed(
                f"the checkpoint of the best step {step} is in neither {folder} nor {spec.prefix} "
                "of the store: delete both, then run again"
            )
        callback.restore(chosen, module)
    with module.served():
        arguments = (module.family, module.parts, spec.config, place.base)
        adapters.export(*arguments, spec.folder / "weights")


def peak_memory_bytes() -> int:
    """The most that the device held for us; without a GPU, the most that this process held."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _keep(folder: Path, step: int, rows: "Sequence[Sequence[Image]]") -> None:
    """A look's images as one sheet, where `live` finds it."""
    with written_beside(folder / VALIDATION / f"{step:08d}.png") as temporary:
        temporary.write_bytes(sheet_of(rows))


def _say(spec: TrainingSpec, step: int, figures: Mapping[str, float]) -> None:
    parts = [f"loss {figures['instance']:.4f}"]
    if spec.config.prior.enabled:
        parts.append(f"class {figures['class']:.4f}")
    parts.append(f"{figures['steps_per_second']:.1f} steps/s")
    standing = AttemptProgress(step=step, total=spec.config.train.steps, label=", ".join(parts))
    write_record(spec.folder / "progress.json", standing)
    told = {
        "dreambooth_step": step,
        "dreambooth_loss": figures["instance"],
        "dreambooth_steps_per_second": figures["steps_per_second"],
        "dreambooth_memory_bytes": peak_memory_bytes(),
    }
    for name, value in told.items():
        telemetry.send(name, value, model=spec.config.name)


def _failed(spec: TrainingSpec, message: str, out_of_memory: bool = False) -> AttemptResult:
    status: Literal["out_of_memory", "failed"] = "out_of_memory" if out_of_memory else "failed"
    return AttemptResult(attempt=spec.attempt, status=status, message=message)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether it is the GPU's own error, or what is said of a full memory without one."""
    told = str(error)
    return type(error).__name__ == "OutOfMemoryError" or any(words in told for words in FULL)


def _sentence(spec: TrainingSpec, error: Exception) -> str:
    log = spec.folder / "train.log"
    if _is_out_of_memory(error):
        return (
            "the device's memory is full; set memory.fit: auto, lower train.batch_size or use "
            f"train.method: lora ({log})"
        )
    return f"training broke with {type(error).__name__}: {one_line(error)} ({log})"


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
