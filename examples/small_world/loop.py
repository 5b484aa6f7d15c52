"""One resumable training loop for everything the small world trains from nothing."""

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
    """How a network is trained: AdamW, linear warm-up, constant, linear decay over the last part."""

    steps: int
    batch: int
    learning_rate: float
    warmup: int = 300
    decay_share: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.999
    seconds: float = math.inf
    """Ends, with its decay done, at the latest after so much training time."""
    cooldown: int = 1_000
    """Steps of the decay when it is started before its time: by `Watch.goal` or `request_cooldown`."""
    cpu_bf16: bool = False
    """bfloat16 autocast on a CPU too; a GPU always has it."""
    log_every: int = 250
    """Steps between two lines of the log."""


class Watch(NamedTuple):
    """How a training is measured while it goes on."""

    figures: Callable[[nn.Module, int], dict[str, float]]
    """From the averaged network and the number of pictures seen."""
    every: float
    """Seconds between two measurements; the last step is always measured."""
    goal: dict[str, float] = {}  # noqa: RUF012 - never changed
    """The decay starts as soon as every one of these figures is reached; empty: no goal."""


class State(NamedTuple):
    """How far a training is."""

    step: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    cooldown_from: int | None = None
    """The step at which a decay was started before its time."""
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
    watch: Watch | None = None,
) -> dict[str, float]:
    """Train `network` on rows drawn at random and leave the averaged weights in it.

    `loss(network, indices)` gives a scalar for a batch of row numbers, int64 (batch,). Goes on from
    `folder/<name>.pt` when it is there, and appends to `folder/log.jsonl`. Returns steps, final loss and
    seconds.
    """
    place = device()
    network.to(place).train()
    average = copy.deepcopy(network).requires_grad_(False)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=(0.9, 0.98),
        fused=place.type == "cuda",
    )
    file = folder / f"{name}.pt"
    state = _restore(file, network, average, optimizer)
    started = saved_at = time.monotonic() - state.seconds
    while (done := progress(state, recipe)) < 1:
        step = state.step
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * lr_scale(step, done, recipe)
        draw = torch.Generator().manual_seed(step)
        indices = torch.randint(rows, (recipe.batch,), generator=draw).to(place, non_blocking=True)
        torch.manual_seed(step)
        with torch.autocast(place.type, torch.bfloat16, place.type == "cuda" or recipe.cpu_bf16):
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
        if watch is not None and (last or state.seconds - state.measured >= watch.every):
            state = _measure(folder, name, recipe, state, watch, average)
        if state.cooldown_from is None and _request(folder, name).exists():
            state = state._replace(cooldown_from=state.step)
        if last or time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
            saved_at = time.monotonic()
            _save(file, network, average, optimizer, state)
    network.load_state_dict(average.state_dict())
    network.eval()
    return {"steps": state.step, "loss": state.loss, "seconds": round(state.seconds)}


def request_cooldown(folder: Path, name: str) -> None:
    """Let the training `name` in `folder` start its decay now, or when it is next run."""
    folder.mkdir(parents=True, exist_ok=True)
    _request(folder, name).touch()


def progress(state: State, recipe: Recipe) -> float:
    """Share of the training that is done; 1 or more at its end."""
    done = max(state.step / recipe.steps, state.seconds / recipe.seconds)
    if state.cooldown_from is None:
        return done
    left = 1 - (state.step - state.cooldown_from) / recipe.cooldown
    return max(done, 1 - recipe.decay_share * left)


def lr_scale(step: int, done: float, recipe: Recipe) -> float:
    """Learning rate at a step as a share of the recipe's."""
    return min(1.0, (step + 1) / recipe.warmup, max(0.02, (1 - done) / recipe.decay_share))


def _request(folder: Path, name: str) -> Path:
    return folder / f"{name}.cooldown"


def _measure(
    folder: Path, name: str, recipe: Recipe, state: State, watch: Watch, average: nn.Module
) -> State:
    average.eval()
    with torch.no_grad():
        figures = watch.figures(average, state.step * recipe.batch)
    _log(folder, name, recipe, state, figures)
    reached = watch.goal and all(figures[key] >= least for key, least in watch.goal.items())
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
def _average(average: nn.Module, network: nn.Module, keep: float) -> None:
    theirs: list[Tensor] = [*network.parameters()]
    torch._foreach_lerp_([*average.parameters()], theirs, 1 - keep)
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
    """Replace the file in one step: it is complete at any time, whenever the process is killed."""
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
