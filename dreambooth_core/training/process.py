"""One rank of one training attempt: `python -m dreambooth_core.training.process SPEC.json`.

When stopped (see `preemption`), it finishes the step, saves a checkpoint and writes the result file.
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

OUT_OF_MEMORY = ("can't allocate memory", "could not create a primitive", "Cannot allocate memory")
"""Errors of the CPU allocator, of oneDNN and of the system, that mean that memory is full."""


def main(arguments: list[str]) -> int:
    """Train; exit status 0 done, 75 preempted, 1 failed. Rank 0 writes the result file.

    Other ranks exit with 0 when preempted, since torchrun ends all ranks after a non-zero status.
    """
    spec = read_record(Path(arguments[0]), TrainingSpec) if len(arguments) == 1 else None
    if spec is None:
        print("usage: python -m dreambooth_core.training.process SPEC.json", file=sys.stderr)
        return 2
    # its warning about a faster CPU kernel would be the last line of the log
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    rules = spec.config.checkpoints
    stop = Stop(spec.folder / "stop", rules.max_minutes)
    try:
        result = _attempt(spec, stop, Watchdog(rules.stall_minutes))
    except DreamBoothError as error:
        result = _failed(spec, str(error))
    except Exception as error:
        traceback.print_exc()
        result = _failed(spec, _message(spec, error), out_of_memory=_is_out_of_memory(error))
    if launcher.rank() == 0:
        write_record(spec.folder / "result.json", result)
    codes = {"done": 0, "preempted": Preempted.exit_code if launcher.rank() == 0 else 0}
    return codes.get(result.status, 1)


def _attempt(spec: TrainingSpec, stop: Stop, watchdog: Watchdog) -> AttemptResult:
    from dreambooth_core.tracking.loggers import Loggers
    from dreambooth_core.training import background, checkpoints, distributed
    from dreambooth_core.training.callback import Hooks, TrainingCallback
    from dreambooth_core.training.validation import Validator

    rules = spec.config.checkpoints
    distributed.init(spec.folder / launcher.RENDEZVOUS / "ranks", rules.stall_minutes)
    context, module, inputs = _prepared(spec, watchdog)
    lease, folder = HeldLease(context.store, spec.prefix, spec.holder), spec.folder / "checkpoints"
    retention = checkpoints.Retention(rules.keep_last, rules.keep_every_n_steps)
    uploads = background.Background(
        lambda: checkpoints.mirror(lease, folder, retention), "uploading checkpoints"
    )

    def write(snapshot: "Snapshot") -> None:
        checkpoints.save(folder, snapshot, run=folder.parent.name, code=spec.code)
        checkpoints.prune(folder, retention, snapshot.best)
        uploads.request()

    loggers = Loggers(spec.config, spec.folder.name if launcher.rank() == 0 else None)

    def show(curves: LearningCurves) -> None:
        write_record(spec.folder / "curves.json", curves)
        loggers.log(curves)

    writer = checkpoints.Writer(write)
    validator = None
    if spec.config.validation.every_n_steps is not None:
        save_sheet = partial(_save_sheet, spec.folder)
        validator = Validator(
            spec.config, context, inputs.validation_batches, spec.instance, save_sheet
        )
    callback = TrainingCallback(
        Hooks(
            stop_reason=stop,
            report=lambda step, figures: _report(spec, step, figures),
            save=writer.submit,
            wait_saved=writer.wait,
            show=show,
            validate=validator,
            beat=watchdog.beat,
            resume=spec.resume,
        )
    )
    _run(spec, module, inputs, callback, stop)
    distributed.shut_down()
    writer.wait()
    watchdog.close()
    result = _result(spec, module, inputs, callback)
    if launcher.rank() == 0:
        show(result.curves)
        loggers.close(finished=result.status == "done")
    if launcher.rank() == 0 and result.status == "done":
        _export(spec, context, module, result)
    elif launcher.rank() == 0:
        # written before the upload ends, for which a preempting process may not wait
        write_record(spec.folder / "result.json", result)
    uploads.close()
    return result


def _prepared(
    spec: TrainingSpec, watchdog: Watchdog
) -> tuple["TrainingContext", "DreamBooth", "TrainingInputs"]:
    """Load context, module and inputs; nothing else stays in memory."""
    import torch

    from dreambooth_core.diffusion import adapters, base_model
    from dreambooth_core.diffusion.families import load_family
    from dreambooth_core.storage.stores import open_store
    from dreambooth_core.training import distributed, inputs

    config, device = spec.config, torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    family, base = load_family(config.model.family), base_model.base_folder(config.model)
    context = inputs.TrainingContext(
        base, open_store(config.storage), device, launcher.rank(), watchdog.beat
    )
    names = adapters.trained_components(family, config)
    trains_text = any(name in family.text_encoders for name in names)
    with distributed.rank_zero_first():
        prepared = inputs.prepare_inputs(
            config, family, context, spec.instance, spec.classes, trains_text
        )
    module = _loaded(spec, context, sharded=config.train.strategy == "fsdp2")
    if prepared.conditioning is None:
        module.set_prompts(family.tokenize(module.parts, prepared.prompts), encodes=True)
    else:
        module.set_prompts(prepared.conditioning, encodes=False)
    return context, module, prepared


def _loaded(spec: TrainingSpec, context: "TrainingContext", *, sharded: bool) -> "DreamBooth":
    """The base with its trainable weights, on the CPU; if sharded, on the device."""
    from dreambooth_core.diffusion import adapters
    from dreambooth_core.diffusion.families import channels_last, load_family, only
    from dreambooth_core.training import fsdp, precision, quantization
    from dreambooth_core.training.module import DreamBooth

    config, base = spec.config, context.base
    family = load_family(config.model.family)
    names = {*adapters.trained_components(family, config)}
    text = family.text_encoders if names & {*family.text_encoders} else ()
    parts = family.load(base, only(base, family.denoiser, *text), precision.frozen_numbers(config))
    if not sharded:  # shards are always in the default memory layout
        channels_last(parts[family.denoiser])
    if config.model.quantize != "none":
        parts = quantization.quantize(parts, family, config.model.quantize)
    trained = adapters.prepare(family, parts, config)
    if sharded:
        trained = fsdp.shard(parts, trained, context.device)
    return DreamBooth(family, parts, trained, config)


def _run(
    spec: TrainingSpec,
    module: "DreamBooth",
    inputs: "TrainingInputs",
    callback: "TrainingCallback",
    stop: Stop,
) -> None:
    """Train the remaining steps; signals are blocked until our handlers have replaced Lightning's."""
    from dreambooth_core.training import loop
    from dreambooth_core.training.callback import restore

    if spec.resume is not None and spec.resume_ends:
        module.configure_optimizers()
        callback.state.curves = restore(spec.resume, module)
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, stop.signals)

    def ready() -> None:
        stop.install()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, stop.signals)

    callback.hooks.ready = ready
    try:
        loop.fit(module, inputs.train_batches, callback, spec.resume_step)
    finally:
        ready()


def _result(
    spec: TrainingSpec, module: "DreamBooth", inputs: "TrainingInputs", callback: "TrainingCallback"
) -> AttemptResult:
    from dreambooth_core.training.best_step import best_step

    state, total = callback.state, spec.config.train.steps
    if state.stopped_at is not None:
        return AttemptResult(
            attempt=spec.attempt,
            status="preempted",
            step=state.stopped_at,
            message=state.reason,
            curves=callback.curves(module, state.stopped_at, ended=False),
        )
    taken = state.early_stop or (spec.resume_step if spec.resume_ends else total)
    best = best_step(state.curves.validations, spec.config.validation)
    class_images = {
        index
        for micro in range(len(inputs.train_batches))
        for index in inputs.train_batches.needed(micro)
    }
    return AttemptResult(
        attempt=spec.attempt,
        status="done",
        step=taken,
        chosen_step=best.step if best else taken,
        curves=callback.curves(module, taken, ended=True),
        class_images_used=len(class_images),
        steps_per_second=state.steps_per_second,
        peak_memory_bytes=peak_memory_bytes(),
    )


def _export(
    spec: TrainingSpec, context: "TrainingContext", module: "DreamBooth", result: AttemptResult
) -> None:
    """Write the inference weights of the chosen step."""
    from dreambooth_core.diffusion import adapters
    from dreambooth_core.training import checkpoints
    from dreambooth_core.training.callback import restore

    step, sharded = result.chosen_step, spec.config.train.strategy == "fsdp2"
    if sharded:
        module = _loaded(spec, context, sharded=False)
        module.configure_optimizers()
    if sharded or step != result.step:
        folder = spec.folder / "checkpoints"
        chosen = checkpoints.fetch_step(context.store, spec.prefix, folder, step)
        if chosen is None:
            raise StageFailed(
                f"the checkpoint of the best step {step} is in neither {folder} nor {spec.prefix} "
                "of the store: delete both, then run again"
            )
        restore(chosen, module)
    with module.inference_weights():
        arguments = (module.family, module.parts, spec.config, context.base)
        adapters.export(*arguments, spec.folder / "weights")


def peak_memory_bytes() -> int:
    """Peak memory of this process on the GPU; without one, its peak resident memory."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _save_sheet(folder: Path, step: int, rows: "Sequence[Sequence[Image]]") -> None:
    """Write a validation's images as one contact sheet, which `tracking.live` uploads."""
    with written_beside(folder / VALIDATION / f"{step:08d}.png") as temporary:
        temporary.write_bytes(sheet_of(rows))


def _report(spec: TrainingSpec, step: int, figures: Mapping[str, float]) -> None:
    parts = [f"loss {figures['instance']:.4f}"]
    if spec.config.prior.enabled:
        parts.append(f"class {figures['class']:.4f}")
    parts.append(f"{figures['steps_per_second']:.1f} steps/s")
    progress = AttemptProgress(step=step, total=spec.config.train.steps, label=", ".join(parts))
    write_record(spec.folder / "progress.json", progress)
    gauges = {
        "dreambooth_step": step,
        "dreambooth_loss": figures["instance"],
        "dreambooth_steps_per_second": figures["steps_per_second"],
        "dreambooth_memory_bytes": peak_memory_bytes(),
    }
    for name, value in gauges.items():
        telemetry.send(name, value, model=spec.config.name)


def _failed(spec: TrainingSpec, message: str, out_of_memory: bool = False) -> AttemptResult:
    status: Literal["out_of_memory", "failed"] = "out_of_memory" if out_of_memory else "failed"
    return AttemptResult(attempt=spec.attempt, status=status, message=message)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether it is torch's error of a full GPU, or one of `OUT_OF_MEMORY` on the CPU."""
    message = str(error)
    return type(error).__name__ == "OutOfMemoryError" or any(
        part in message for part in OUT_OF_MEMORY
    )


def _message(spec: TrainingSpec, error: Exception) -> str:
    log = spec.folder / "train.log"
    if _is_out_of_memory(error):
        return (
            "the device's memory is full; set memory.fit: auto, lower train.batch_size or use "
            f"train.method: lora ({log})"
        )
    return f"training failed with {type(error).__name__}: {one_line(error)} ({log})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
