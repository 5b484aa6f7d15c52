"""One resumable training loop for everything the small world trains from nothing."""

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

SAVE_EVERY_SECONDS = 60


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


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    name: str,
    network: nn.Module,
    loss: Callable[[nn.Module, Tensor], Tensor],
    rows: int,
    recipe: Recipe,
    folder: Path,
) -> dict[str, float]:
    """Train `network` on rows drawn at random and leave the averaged weights in it.

    `loss(network, indices)` gives a scalar for a batch of row numbers, int64 (batch,). Goes on from
    `folder/<name>.pt` when it is there. Returns steps, final loss and seconds.
    """
    place = device()
    network.to(place).train()
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        betas=(0.9, 0.98),
        fused=place.type == "cuda",
    )
    file = folder / f"{name}.pt"
    state = {"step": 0, "seconds": 0.0, "loss": 0.0}
    if file.exists():
        saved = torch.load(file, map_location=place, weights_only=True)
        network.load_state_dict(saved["network"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    started = saved_at = time.monotonic() - state["seconds"]
    parameters = [p for p in network.parameters() if p.requires_grad]
    while (done := progress(state["step"], time.monotonic() - started, recipe)) < 1:
        step = int(state["step"])
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * lr_scale(step, done, recipe)
        draw = torch.Generator().manual_seed(step)
        indices = torch.randint(rows, (recipe.batch,), generator=draw).to(place, non_blocking=True)
        torch.manual_seed(step)
        with torch.autocast(place.type, torch.bfloat16, enabled=place.type == "cuda"):
            value = loss(network, indices)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        _average(average, network, min(recipe.ema, (1 + step) / (10 + step)))
        state["step"] = step + 1
        last = progress(step + 1, time.monotonic() - started, recipe) >= 1
        if (step + 1) % 250 == 0 or last:
            state |= {"loss": value.item(), "seconds": time.monotonic() - started}
            print(json.dumps({"name": name, **state}), flush=True)
        if last or time.monotonic() - saved_at > SAVE_EVERY_SECONDS:
            saved_at = time.monotonic()
            state["seconds"] = saved_at - started
            _save(file, network, average, optimizer, state)
    network.load_state_dict(average.state_dict())
    network.eval()
    return {"steps": state["step"], "loss": state["loss"], "seconds": round(state["seconds"])}


def progress(step: float, seconds: float, recipe: Recipe) -> float:
    """Share of the training that is done; 1 or more at its end."""
    return max(step / recipe.steps, seconds / recipe.seconds)


def lr_scale(step: int, done: float, recipe: Recipe) -> float:
    """Learning rate at a step as a share of the recipe's."""
    return min(1.0, (step + 1) / recipe.warmup, max(0.02, (1 - done) / recipe.decay_share))


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, keep: float) -> None:
    theirs: list[Tensor] = [*network.parameters()]
    torch._foreach_lerp_([*average.parameters()], theirs, 1 - keep)
    for a, b in zip(average.buffers(), network.buffers(), strict=True):
        a.copy_(b)


def _save(
    file: Path,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, float],
) -> None:
    partial = file.with_suffix(".partial")
    torch.save(
        {
            "network": network.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "state": state,
        },
        partial,
    )
    partial.replace(file)
