"""Several optimizers as one: for a step size of their own, or to step inside the backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers that look like one: their groups in a row, and one state."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = tuple(parts)
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _called(closure)
        for part in self.parts:
            part.step()
        return loss


class BackwardStepOptimizer(CombinedOptimizer):
    """Has stepped when the backward pass ends: a parameter as soon as its gradient is complete."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__(parts)
        for part in parts:
            (weight,) = part.param_groups[0]["params"]
            weight.register_post_accumulate_grad_hook(_stepper(part))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return _called(closure)


def _called(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _stepper(part: torch.optim.Optimizer) -> Callable[[Tensor], None]:
    def step(weight: Tensor) -> None:
        part.step()
        weight.grad = None

    return step
