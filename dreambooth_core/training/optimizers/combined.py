"""Several optimizers in one: a step size for each, or steps inside the backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers behind one interface, with concatenated groups and one shared state."""

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for member in members for group in member.param_groups], {})
        self.members = tuple(members)
        for member in members:
            member.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _called(closure)
        for member in self.members:
            member.step()
        return loss


class BackwardStepOptimizer(CombinedOptimizer):
    """Steps each parameter inside the backward pass, once its gradient is complete; frees the gradient."""

    def __init__(self, members: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__(members)
        for member in members:
            (weight,) = member.param_groups[0]["params"]
            weight.register_post_accumulate_grad_hook(_step_hook(member))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return _called(closure)


def _called(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _step_hook(optimizer: torch.optim.Optimizer) -> Callable[[Tensor], None]:
    def step(weight: Tensor) -> None:
        optimizer.step()
        weight.grad = None

    return step
