"""Lightning callback: checkpoints, validation, early stopping, progress, preemption and resume."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytorch_lightning as lightning
import torch
from torch import Tensor

from dreambooth_core import telemetry
from dreambooth_core.errors import StageFailed
from dreambooth_core.storage.records import LearningCurves, ValidationResult
from dreambooth_core.tracking import learning_curves
from dreambooth_core.training import checkpoints, distributed, fsdp, optimizers
from dreambooth_core.training.batches import Batch
from dreambooth_core.training.best_step import best_step, should_stop_early
from dreambooth_core.training.checkpoints import Snapshot

if TYPE_CHECKING:
    from dreambooth_core.training.module import DreamBooth

REPORT_SECONDS = 0.5


@dataclass
class Hooks:
    """Functions that the callback calls."""

    stop_reason: Callable[[], str]
    """Why to stop; empty while there is no reason."""
    report: Callable[[int, Mapping[str, float]], None]
    """Receives steps done, and `instance` and `class` loss and `steps_per_second`; on rank 0."""
    save: Callable[[Snapshot], None]
    """Starts writing a snapshot in the background; on rank 0."""
    wait_saved: Callable[[], None] = lambda: None
    """Waits until the previous snapshot is on disk."""
    show: Callable[[LearningCurves], None] = lambda curves: None
    """Receives the learning curves so far; on rank 0."""
    validate: Callable[["DreamBooth", int], ValidationResult] | None = None
    """Validates the model at a step; on rank 0."""
    beat: Callable[[], None] = lambda: None
    """Called at every sign of progress, for the watchdog."""
    ready: Callable[[], None] = lambda: None
    """Called before the first step."""
    resume: Path | None = None
    """A verified checkpoint to resume from."""


@dataclass
class TrainingState:
    """State of the training, from which the attempt's result is made."""

    stopped_at: int | None = None
    """Step at which it was preempted."""
    reason: str = ""
    """Of the preemption."""
    early_stop: int | None = None
    """Step of early stopping."""
    curves: LearningCurves = field(default_factory=LearningCurves)
    """All but the losses, which the module holds."""
    steps_per_second: float = 0.0

    def add(self, **points: Any) -> None:
        """Append one point to each named curve of `curves`."""
        changes = {name: (*getattr(self.curves, name), point) for name, point in points.items()}
        self.curves = self.curves.model_copy(update=changes)

    def add_rates(self, step: int, rates: Mapping[str, float]) -> None:
        """Append a point to the learning rate curve of each component."""
        known = self.curves.rates
        added = {name: (*known.get(name, ()), (step, rate)) for name, rate in rates.items()}
        self.curves = self.curves.model_copy(update={"rates": {**known, **added}})


class StepTime(NamedTuple):
    """A step, and the time before it was taken, in seconds of the monotonic clock."""

    step: int
    at: float

    def speed(self, step: int, now: float) -> float:
        """Steps per second since then."""
        return (step - self.step) / max(1e-9, now - self.at)


class TrainingCallback(lightning.Callback):  # type: ignore[misc]
    """Saves checkpoints, validates, reports progress, and stops the training after a whole step."""

    def __init__(self, hooks: Hooks) -> None:
        self.hooks, self.state = hooks, TrainingState()
        self._began: StepTime | None = None
        self._reported = self._last_point = StepTime(0, 0.0)
        self._reduced = 0
        self._stop_flag = distributed.FlagReduction()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if self.hooks.resume is not None:
            self.state.curves = restore(self.hooks.resume, module, _scaler(trainer))
        if not self.state.curves.validations:
            self._validate(trainer, module, 0)
        self.hooks.ready()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, _index: int) -> None:
        if self._began is None:
            self._began = StepTime(batch["step"], time.monotonic())
            self._reported = self._last_point = self._began
            self._reduced = batch["step"]

    def on_train_batch_end(
        self, trainer: Any, module: Any, _outputs: Any, batch: Batch, _index: int
    ) -> None:
        train = module.config.train
        self.hooks.beat()
        if (batch["micro"] + 1) % train.gradient_accumulation_steps:
            return
        done = batch["step"] + 1
        if done % learning_curves.width(train.steps) == 0 or done == train.steps:
            self._add_points(trainer, module, done)
        self._validate_save_stop(trainer, module, done)
        if trainer.is_global_zero:
            self._report(trainer, module, done)

    def curves(self, module: "DreamBooth", done: int, *, ended: bool) -> LearningCurves:
        """The learning curves of the first `done` steps."""
        config = module.config
        losses = learning_curves.windows(
            module.losses[:done].tolist(),
            config.train.steps,
            with_classes=config.prior.enabled,
            ended=ended,
        )
        return self.state.curves.model_copy(update={"losses": losses})

    def _add_points(self, trainer: Any, module: Any, done: int) -> None:
        """Append the current speed and learning rates to their curves."""
        self._reduce_losses(trainer, module, done)
        now = time.monotonic()
        self.state.add(speeds=(done, round(self._last_point.speed(done, now), 4)))
        self._last_point = StepTime(done, now)
        groups = module.optimizer.param_groups
        rates = learning_curves.rates(groups, text_frozen=module.text_frozen)
        self.state.add_rates(done, rates)

    def _reduce_losses(self, trainer: Any, module: Any, done: int) -> None:
        """Average the losses of steps since the last call over the ranks."""
        if trainer.world_size > 1 and done > self._reduced:
            new = slice(self._reduced, done)
            module.losses[new] = trainer.strategy.reduce(module.losses[new], reduce_op="mean")
        self._reduced = done

    def _validate_save_stop(self, trainer: Any, module: Any, done: int) -> None:
        config, state = module.config, self.state
        last = done == config.train.steps
        if config.validation.every_n_steps and (
            done % config.validation.every_n_steps == 0 or last
        ):
            self._validate(trainer, module, done)
            if not last and should_stop_early(state.curves.validations, config.validation):
                state.early_stop = done
        reason = "" if last or state.early_stop else self._stop_reason()
        if reason:
            state.stopped_at, state.reason = done, reason
        ends = last or bool(reason) or state.early_stop is not None
        best = best_step(state.curves.validations, config.validation)
        is_best = best is not None and best.step == done
        if ends or is_best or done % config.checkpoints.every_n_steps == 0:
            self._save(trainer, module, done)
        trainer.should_stop = ends

    def _stop_reason(self) -> str:
        """Why to stop, the same on all ranks: a reason of any rank counts for all."""
        reason = self.hooks.stop_reason()
        return distributed.first_reason(reason) if self._stop_flag.reduce(bool(reason)) else ""

    def _validate(self, trainer: Any, module: Any, done: int) -> None:
        """Validate on rank 0 and broadcast the result, which decides on all ranks."""
        if self.hooks.validate is None:
            return
        result = self.hooks.validate(module, done) if trainer.is_global_zero else None
        self.state.add(validations=trainer.strategy.broadcast(result))
        self.hooks.beat()

    def _save(self, trainer: Any, module: Any, done: int) -> None:
        started = time.monotonic()
        self._reduce_losses(trainer, module, done)
        self.hooks.wait_saved()
        snapshot = snapshot_of(module, trainer, done, self.state)
        if not trainer.is_global_zero:
            return
        losses = module.losses[:done]
        if not bool(torch.isfinite(losses).all()):
            first = int((~torch.isfinite(losses)).any(1).nonzero()[0])
            raise StageFailed(
                f"the loss is not a number from step {first} on; lower train.learning_rate"
            )
        stall = time.monotonic() - started
        self.state.add(stalls=(done, round(stall, 4)))
        telemetry.send("dreambooth_checkpoint_stall_seconds_total", stall)
        curves = self.state.curves.model_dump(mode="json")
        self.hooks.save(replace(snapshot, scalars={**snapshot.scalars, "curves": curves}))

    def _report(self, trainer: Any, module: Any, done: int) -> None:
        now = time.monotonic()
        if self._began is not None:
            self.state.steps_per_second = self._began.speed(done, now)
        if not trainer.should_stop and now - self._reported.at < REPORT_SECONDS:
            return
        recent = module.losses[self._reported.step : done].mean(0).tolist()
        speed = self._reported.speed(done, now)
        self._reported = StepTime(done, now)
        self.hooks.report(
            done, {"instance": recent[0], "class": recent[1], "steps_per_second": speed}
        )
        self.hooks.show(self.curves(module, done, ended=False))


def snapshot_of(module: "DreamBooth", trainer: Any, done: int, state: TrainingState) -> Snapshot:
    """The resumable state after `done` steps, without the learning curves; tensors on the CPU."""
    names: dict[Tensor, str] = {weight: name for name, weight in module.weights.items()}
    tensors, scalars = optimizers.state_of(module.optimizer, names)
    groups = {
        "parameters": {name: fsdp.full_tensor(weight) for name, weight in module.weights.items()},
        "optimizer": tensors,
        "losses": {"losses": fsdp.full_tensor(module.losses[:done])},
    }
    if module.average is not None:
        groups["average"] = module.average.state()
    best = best_step(state.curves.validations, module.config.validation)
    return Snapshot(
        step=done,
        groups={name: group for name, group in groups.items() if group},
        scalars={
            "optimizer": scalars,
            "scaler": scaler.state_dict() if (scaler := _scaler(trainer)) else {},
        },
        best=None if best is None else best.step,
        over=state.early_stop is not None or done == module.config.train.steps,
    )


def restore(path: Path, module: "DreamBooth", scaler: Any = None) -> LearningCurves:
    """Load a verified checkpoint into module, optimizer and gradient scaler; returns its learning curves.

    The model keeps its memory layouts, which decide the order of summation. Raises `StageFailed`
    for a checkpoint of another model.
    """
    parameters = checkpoints.load(path, "parameters")
    if set(module.weights) != set(parameters):
        raise StageFailed(f"the checkpoint {path} is of another model; delete it and run again")
    losses, scalars = checkpoints.load(path, "losses")["losses"], checkpoints.scalars(path)
    with torch.no_grad():
        module.losses[: len(losses)] = losses.to(module.losses.device)
        for name, weight in module.weights.items():
            weight.copy_(fsdp.local_shard(parameters[name], weight))
    if module.average is not None:
        module.average.load_state(checkpoints.load(path, "average"))
    names: dict[Tensor, str] = {weight: name for name, weight in module.weights.items()}
    optimizers.load_state(
        module.optimizer, names, checkpoints.load(path, "optimizer"), scalars["optimizer"]
    )
    if scaler is not None and scalars["scaler"]:
        scaler.load_state_dict(scalars["scaler"])
    return LearningCurves.model_validate(scalars["curves"])


def _scaler(trainer: Any) -> Any:
    """fp16's gradient scaler, or None."""
    return getattr(trainer.precision_plugin, "scaler", None)
