"""What stands by the training loop: saves, tells, stops in order, and puts back."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as lightning
import torch
from torch import Tensor

from dreambooth_core import checkpoints
from dreambooth_core.batches import Batch
from dreambooth_core.errors import StageFailed

if TYPE_CHECKING:
    from dreambooth_core.training import DreamBooth

SAY_SECONDS = 0.5


class Keeper(lightning.Callback):  # type: ignore[misc]
    """Saves checkpoints, says how far training is, and stops it in order when asked to."""

    def __init__(
        self,
        folder: Path,
        stop: Callable[[], bool],
        say: Callable[[int, Mapping[str, float]], None],
        saved: Callable[[Path], None],
        resume: Path | None = None,
    ) -> None:
        self.folder, self.stop, self.say, self.saved = folder, stop, say, saved
        self.resume = resume
        self.ready: Callable[[], None] = _nothing
        """Called when the first step is about to be taken."""
        self.stopped_at: int | None = None
        self._said, self._said_step = time.monotonic(), -1

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if self.resume is not None:
            restore(self.resume, module, trainer.optimizers[0])
        self.ready()
        self._said = time.monotonic()

    def on_train_batch_end(
        self, trainer: Any, module: Any, _outputs: Any, batch: Batch, _index: int
    ) -> None:
        done, train = batch["step"] + 1, module.train_options
        if self._said_step < 0:
            self._said_step = batch["step"]
        last = done == train.steps
        stopping = not last and self._asked(trainer, done)
        if last or stopping or done % train.checkpoint_every == 0:
            self._save(trainer, module, done)
        if trainer.is_global_zero:
            self._report(module, done, last or stopping)
        if stopping:
            self.stopped_at = done
            trainer.should_stop = True

    def _asked(self, trainer: Any, done: int) -> bool:
        """All ranks must answer alike; across ranks only every few steps, since asking waits."""
        if trainer.world_size == 1:
            return self.stop()
        if done % 4:
            return False
        asked = torch.tensor(float(self.stop()), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(asked, reduce_op="sum") > 0)

    def _save(self, trainer: Any, module: Any, done: int) -> None:
        if trainer.world_size > 1:
            module.losses = trainer.strategy.reduce(module.losses, reduce_op="mean")
        if not trainer.is_global_zero:
            return
        if not bool(torch.isfinite(module.losses[:done]).all()):
            first = int((~torch.isfinite(module.losses[:done])).any(1).nonzero()[0])
            raise StageFailed(
                f"the loss is not a number from step {first} on; lower train.learning_rate"
            )
        path = checkpoints.save(self.folder, done, state(module, trainer.optimizers[0], done))
        checkpoints.prune(self.folder, module.train_options.keep_checkpoints)
        self.saved(path)

    def _report(self, module: Any, done: int, always: bool) -> None:
        now = time.monotonic()
        if not always and now - self._said < SAY_SECONDS:
            return
        recent = module.losses[self._said_step : done].mean(0).tolist()
        speed = (done - self._said_step) / max(1e-9, now - self._said)
        self._said, self._said_step = now, done
        self.say(done, {"instance": recent[0], "class": recent[1], "steps_per_second": speed})


def _nothing() -> None: ...


def state(
    module: "DreamBooth", optimizer: torch.optim.Optimizer, done: int
) -> dict[str, dict[str, Tensor]]:
    """Everything that the next step hangs on, as named tensors on the CPU."""
    parameters, moments = {}, {}
    for component, weights in module.trained.items():
        for name, weight in weights.items():
            parameters[f"{component}/{name}"] = _plain(weight)
            for moment, value in optimizer.state.get(weight, {}).items():
                moments[f"{component}/{name}/{moment}"] = _plain(value)
    losses = {"losses": _plain(module.losses[:done])}
    return {"parameters": parameters, "moments": moments, "losses": losses}


def restore(path: Path, module: "DreamBooth", optimizer: torch.optim.Optimizer | None) -> None:
    """Put a verified checkpoint back, with the optimizer's state if there is one.

    Memory layouts stay the model's own, since the order of sums hangs on them. Raises
    `StageFailed` when the checkpoint is of another model.
    """
    parameters = checkpoints.load(path, "parameters")
    moments = checkpoints.load(path, "moments")
    losses = checkpoints.load(path, "losses")["losses"]
    names = {f"{part}/{name}" for part, weights in module.trained.items() for name in weights}
    if names != set(parameters):
        raise StageFailed(f"the checkpoint {path} is of another model; delete it and run again")
    with torch.no_grad():
        module.losses[: len(losses)] = losses.to(module.losses.device)
        for component, weights in module.trained.items():
            for name, weight in weights.items():
                place = f"{component}/{name}"
                weight.copy_(parameters[place])
                if optimizer is not None:
                    _restore_moments(optimizer, weight, place, moments)


def _restore_moments(
    optimizer: torch.optim.Optimizer, weight: Tensor, place: str, moments: dict[str, Tensor]
) -> None:
    if f"{place}/step" not in moments:
        return
    found = optimizer.state[weight]
    found["step"] = moments[f"{place}/step"].to(weight.device)
    for moment in ("exp_avg", "exp_avg_sq"):
        found[moment] = torch.empty_like(weight, memory_format=torch.preserve_format)
        found[moment].copy_(moments[f"{place}/{moment}"])


def _plain(value: Tensor) -> Tensor:
    return value.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
