"""Resumable training loop of the small world's base, encoders and detector."""

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

SAVE_EVERY_SECONDS = 120


class Recipe(NamedTuple):
    """AdamW with linear warm-up, a constant learning rate, and linear decay over the last part."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 300
    decay_share: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.999
    seconds: float = math.inf
    """Limit of the training time, decay included."""
    cooldown: int = 1_000
    """Steps of a decay started early, by `Validation.goal` or `request_cooldown`."""
    cpu_bf16: bool = False
    """bfloat16 autocast on a CPU; always used on a GPU."""
    log_every: int = 250
    """Steps between two lines of the log."""


class Validation(NamedTuple):
    """Measurements during a training."""

    figures: Callable[[nn.Module, int], dict[str, float]]
    """Called with the averaged network and the number of training images so far."""
    every: float
    """Seconds between two measurements; the last step is always measured."""
    goal: dict[str, float] = {}  # noqa: RUF012 - never changed
    """Lower limits: the decay starts once all figures reach them; empty: no goal."""


class State(NamedTuple):
    """Progress of a training, stored in its checkpoint."""

    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    cooldown_from: int | None = None
    """Step at which a decay was started early."""
    measured: float = 0.0
    """`seconds` at the last measurement."""


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    name: str,
    network: nn.Module,
    loss: Callable[[nn.Module, Tensor], Tensor],
    rows: int,
    recipe: Recipe,
    folder: Path,
    validation: Validation | None = None,
) -> dict[str, float]:
    """Train `network` in place, on rows drawn at random, and load its averaged weights into it.

    `loss(network, indices)` is a scalar for a batch of row numbers, int64 (batch,). Resumes from the
    checkpoint `folder/<name>.pt`, and appends to `folder/log.jsonl`. Returns steps, final loss and
    seconds.
    """
    dev = device()
    network.to(dev).train()
    average = copy.deepcopy(network).requires_grad_(False)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=(0.9, 0.98),
        fused=dev.type == "cuda",
    )
    file = folder / f"{name}.pt"
    state = _restore(file, network, average, optimizer)
    started = saved_at = time.monotonic() - state.seconds
    while (done := progress(state, recipe)) < 1:
        step = state.step
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * lr_scale(step, done, recipe)
        draw = torch.Generator().manual_seed(step)
        indices = torch.randint(rows, (recipe.batch,), generator=draw).to(dev, non_blocking=True)
        torch.manual_seed(step)
        with torch.autocast(dev.type, torch.bfloat16, dev.type == "cuda" or recipe.cpu_bf16):
            value = loss(network, indices)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        _average(average, network, min(recipe.ema, (1 + step) / (10 + step)))
        state = state._replace(step=step + 1, seconds=time.monotonic() - started)
        last = progress(state, recipe) >= 1
        if state.step % recipe.log_every == 0 or last:
            state = state._replace(loss=value.item())
            _log(folder, name, recipe, state, {})
        if validation is not None and (last or state.seconds - state.measured >= validation.every):
            state = _measure(folder, name, recipe, state, validation, average)
        if state.cooldown_from is None and _request(folder, name).exists():
            state = state._replace(cooldown_from=state.step)
        if last or time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
            saved_at = time.monotonic()
            _save(file, network, average, optimizer, state)
    network.load_state_dict(average.state_dict())
    network.eval()
    return {"steps": state.step, "loss": state.loss, "seconds": round(state.seconds)}


def request_cooldown(folder: Path, name: str) -> None:
    """Start the decay of the training `name` in `folder` now, or when it is resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    _request(folder, name).touch()


def progress(state: State, recipe: Recipe) -> float:
    """Share of the training that is done, 0 to 1 or slightly more."""
    done = max(state.step / recipe.steps, state.seconds / recipe.seconds)
    if state.cooldown_from is None:
        return done
    left = 1 - (state.step - state.cooldown_from) / recipe.cooldown
    return max(done, 1 - recipe.decay_share * left)


def lr_scale(step: int, done: float, recipe: Recipe) -> float:
    """Factor on the recipe's learning rate, for a step and the progress `done`."""
    return min(1.0, (step + 1) / recipe.warmup, max(0.02, (1 - done) / recipe.decay_share))


def _request(folder: Path, name: str) -> Path:
    return folder / f"{name}.cooldown"


def _measure(
    folder: Path,
    name: str,
    recipe: Recipe,
    state: State,
    validation: Validation,
    average: nn.Module,
) -> State:
    average.eval()
    with torch.no_grad():
        figures = validation.figures(average, state.step * recipe.batch)
    _log(folder, name, recipe, state, figures)
    goal = validation.goal
    reached = goal and all(figures[key] >= least for key, least in goal.items())
    if reached and state.cooldown_from is None:
        state = state._replace(cooldown_from=state.step)
    return state._replace(measured=state.seconds)


def _log(folder: Path, name: str, recipe: Recipe, state: State, figures: dict[str, float]) -> None:
    """One line of JSON to stdout and to the folder's log."""
    facts = {"name": name, "pictures": state.step * recipe.batch, **state._asdict(), **figures}
    line = json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **facts})
    print(line, flush=True)
    with (folder / "log.jsonl").open("a") as log:
        log.write(line + "\n")


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Update the exponential moving average of the weights; buffers are copied."""
    new: list[Tensor] = [*network.parameters()]
    torch._foreach_lerp_([*average.parameters()], new, 1 - decay)
    for a, b in zip(average.buffers(), network.buffers(), strict=True):
        a.copy_(b)


def _restore(
    file: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> State:
    if not file.exists():
        return State()
    saved = torch.load(file, map_location=device(), weights_only=True)
    network.load_state_dict(saved["network"])
    average.load_state_dict(saved["average"])
    optimizer.load_state_dict(saved["optimizer"])
    return State(**saved["state"])


def _save(
    file: Path,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: State,
) -> None:
    """Write the checkpoint atomically: a killed process leaves the previous one intact."""
    partial = file.with_suffix(".partial")
    with partial.open("wb") as out:
        torch.save(
            {
                "network": network.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "state": state._asdict(),
            },
            out,
        )
        out.flush()
        os.fsync(out.fileno())
    partial.replace(file)
