"""What stands by the training loop: saves, looks, tells, stops in order, and puts back."""

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

SAY_SECONDS = 0.5


@dataclass
class Hooks:
    """What the keeper is told, and whom it tells."""

    stop: Callable[[], str]
    """Why to stop; empty while there is no reason."""
    say: Callable[[int, Mapping[str, float]], None]
    save: Callable[[Snapshot], None]
    """Takes a snapshot behind the training, on the first rank."""
    settle: Callable[[], None] = lambda: None
    """Waits until the snapshot before is on disk."""
    show: Callable[[LearningCurves], None] = lambda course: None
    """Takes how training went so far, on the first rank."""
    look: Callable[["DreamBooth", int], ValidationResult] | None = None
    """Looks at the model as it is, on the first rank."""
    beat: Callable[[], None] = lambda: None
    """Told that there is progress."""
    ready: Callable[[], None] = lambda: None
    """Called when the first step is about to be taken."""
    resume: Path | None = None


@dataclass
class TrainingState:
    """How the training stands; what a result is made of."""

    stopped_at: int | None = None
    reason: str = ""
    over_at: int | None = None
    """Where it ended early, since it got no better."""
    validations: list[ValidationResult] = field(default_factory=list)
    rates: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    speeds: list[tuple[int, float]] = field(default_factory=list)
    stalls: list[tuple[int, float]] = field(default_factory=list)
    steps_per_second: float = 0.0

    def course(self) -> LearningCurves:
        """All that is no loss."""
        return LearningCurves(
            validations=tuple(self.validations),
            rates={name: tuple(points) for name, points in self.rates.items()},
            speeds=tuple(self.speeds),
            stalls=tuple(self.stalls),
        )

    def go_on_from(self, course: LearningCurves) -> None:
        """Take up what `course` gave."""
        self.validations, self.speeds = [*course.validations], [*course.speeds]
        self.rates = {name: [*points] for name, points in course.rates.items()}
        self.stalls = [*course.stalls]


class StepTime(NamedTuple):
    """A step, and the time at which it was about to be taken."""

    step: int
    at: float

    def speed(self, step: int, now: float) -> float:
        """Steps per second since then."""
        return (step - self.step) / max(1e-9, now - self.at)


class TrainingCallback(lightning.Callback):  # type: ignore[misc]
    """Saves checkpoints, says how far training is, and stops it in order when asked to."""

    def __init__(self, orders: Hooks) -> None:
        self.orders, self.standing = orders, TrainingState()
        self._began: StepTime | None = None
        self._said = self._drawn = StepTime(0, 0.0)
        self._summed_up = 0
        self._question = distributed.FlagReduction()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if self.orders.resume is not None:
            self.standing.go_on_from(restore(self.orders.resume, module, _scaler(trainer)))
        if not self.standing.validations:
            self._look(trainer, module, 0)
        self.orders.ready()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, _index: int) -> None:
        if self._began is None:
            self._began = self._said = self._drawn = StepTime(batch["step"], time.monotonic())
            self._summed_up = batch["step"]

    def on_train_batch_end(
        self, trainer: Any, module: Any, _outputs: Any, batch: Batch, _index: int
    ) -> None:
        train = module.config.train
        self.orders.beat()
        if (batch["micro"] + 1) % train.gradient_accumulation_steps:
            return
        done = batch["step"] + 1
        if done % learning_curves.width(train.steps) == 0 or done == train.steps:
            self._draw(trainer, module, done)
        self._decide(trainer, module, done)
        if trainer.is_global_zero:
            self._report(trainer, module, done)

    def course(self, module: "DreamBooth", done: int, *, ended: bool) -> LearningCurves:
        """How training went until now, or in all."""
        config = module.config
        losses = learning_curves.windows(
            module.losses[:done].tolist(),
            config.train.steps,
            with_classes=config.prior.enabled,
            ended=ended,
        )
        return self.standing.course().model_copy(update={"losses": losses})

    def _draw(self, trainer: Any, module: Any, done: int) -> None:
        """Add a point to each curve that is of one moment."""
        self._sum_up(trainer, module, done)
        now, standing = time.monotonic(), self.standing
        standing.speeds.append((done, round(self._drawn.speed(done, now), 4)))
        self._drawn = StepTime(done, now)
        groups = module.optimizer.param_groups
        for name, rate in learning_curves.rates(groups, text_frozen=module.text_rests).items():
            standing.rates.setdefault(name, []).append((done, rate))

    def _sum_up(self, trainer: Any, module: Any, done: int) -> None:
        """Give all ranks the losses of the latest steps, of which each has seen its own share."""
        if trainer.world_size > 1 and done > self._summed_up:
            fresh = slice(self._summed_up, done)
            module.losses[fresh] = trainer.strategy.reduce(module.losses[fresh], reduce_op="mean")
        self._summed_up = done

    def _decide(self, trainer: Any, module: Any, done: int) -> None:
        config, standing = module.config, self.standing
        last = done == config.train.steps
        if config.validation.every_n_steps and (
            done % config.validation.every_n_steps == 0 or last
        ):
            self._look(trainer, module, done)
            if not last and should_stop_early(standing.validations, config.validation):
                standing.over_at = done
        reason = "" if last or standing.over_at else self._asked()
        if reason:
            standing.stopped_at, standing.reason = done, reason
        ends = last or bool(reason) or standing.over_at is not None
        best = best_step(standing.validations, config.validation)
        just_found = best is not None and best.step == done
        if ends or just_found or done % config.checkpoints.every_n_steps == 0:
            self._save(trainer, module, done)
        trainer.should_stop = ends

    def _asked(self) -> str:
        """Why to stop; all ranks answer alike, also when only one of them was asked to."""
        reason = self.orders.stop()
        return distributed.first_word(reason) if self._question.ask(bool(reason)) else ""

    def _look(self, trainer: Any, module: Any, done: int) -> None:
        """The first rank looks, and all know what it saw: they decide by it."""
        if self.orders.look is None:
            return
        seen = self.orders.look(module, done) if trainer.is_global_zero else None
        self.standing.validations.append(trainer.strategy.broadcast(seen))
        self.orders.beat()

    def _save(self, trainer: Any, module: Any, done: int) -> None:
        started, standing = time.monotonic(), self.standing
        self._sum_up(trainer, module, done)
        self.orders.settle()
        snapshot = state(module, trainer, done, standing)
        if not trainer.is_global_zero:
            return
        losses = module.losses[:done]
        if not bool(torch.isfinite(losses).all()):
            first = int((~torch.isfinite(losses)).any(1).nonzero()[0])
            raise StageFailed(
                f"the loss is not a number from step {first} on; lower train.learning_rate"
            )
        stall = time.monotonic() - started
        standing.stalls.append((done, round(stall, 4)))
        telemetry.send("dreambooth_checkpoint_stall_seconds_total", stall)
        course = standing.course().model_dump(mode="json")
        self.orders.save(replace(snapshot, scalars={**snapshot.scalars, "course": course}))

    def _report(self, trainer: Any, module: Any, done: int) -> None:
        now = time.monotonic()
        if self._began is not None:
            self.standing.steps_per_second = self._began.speed(done, now)
        if not trainer.should_stop and now - self._said.at < SAY_SECONDS:
            return
        recent = module.losses[self._said.step : done].mean(0).tolist()
        speed = self._said.speed(done, now)
        self._said = StepTime(done, now)
        self.orders.say(
            done, {"instance": recent[0], "class": recent[1], "steps_per_second": speed}
        )
        self.orders.show(self.course(module, done, ended=False))


def state(module: "DreamBooth", trainer: Any, done: int, standing: TrainingState) -> Snapshot:
    """Everything that the next step hangs on, as named tensors on the CPU; not yet the course."""
    names: dict[Tensor, str] = {weight: name for name, weight in module.weights.items()}
    tensors, scalars = optimizers.state_of(module.optimizer, names)
    groups = {
        "parameters": {name: fsdp.whole(weight) for name, weight in module.weights.items()},
        "optimizer": tensors,
        "losses": {"losses": fsdp.whole(module.losses[:done])},
    }
    if module.average is not None:
        groups["average"] = module.average.state()
    best = best_step(standing.validations, module.config.validation)
    return Snapshot(
        step=done,
        groups={name: group for name, group in groups.items() if group},
        scalars={
            "optimizer": scalars,
            "scaler": scaler.state_dict() if (scaler := _scaler(trainer)) else {},
        },
        best=None if best is None else best.step,
        over=standing.over_at is not None or done == module.config.train.steps,
    )


def restore(path: Path, module: "DreamBooth", scaler: Any = None) -> LearningCurves:
    """Put a verified checkpoint back into module, optimizer and loss scaling; its course.

    Memory layouts stay the model's own, since the order of sums hangs on them. Raises
    `StageFailed` when the checkpoint is of another model.
    """
    parameters = checkpoints.load(path, "parameters")
    if set(module.weights) != set(parameters):
        raise StageFailed(f"the checkpoint {path} is of another model; delete it and run again")
    losses, scalars = checkpoints.load(path, "losses")["losses"], checkpoints.scalars(path)
    with torch.no_grad():
        module.losses[: len(losses)] = losses.to(module.losses.device)
        for name, weight in module.weights.items():
            weight.copy_(fsdp.piece(parameters[name], weight))
    if module.average is not None:
        module.average.put_back(checkpoints.load(path, "average"))
    names: dict[Tensor, str] = {weight: name for name, weight in module.weights.items()}
    optimizers.load_state(
        module.optimizer, names, checkpoints.load(path, "optimizer"), scalars["optimizer"]
    )
    if scaler is not None and scalars["scaler"]:
        scaler.load_state_dict(scalars["scaler"])
    return LearningCurves.model_validate(scalars["course"])


def _scaler(trainer: Any) -> Any:
    """fp16's loss scaling, where there is one."""
    return getattr(trainer.precision_plugin, "scaler", None)
