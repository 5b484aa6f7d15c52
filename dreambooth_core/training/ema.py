"""Exponential moving average (EMA) of the weights, with a decay that warms up.

Polyak & Juditsky 1992; Ho et al. 2020 (arXiv:2006.11239); the warm-up is that of TensorFlow's
ExponentialMovingAverage.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dreambooth_core.errors import StageFailed
from dreambooth_core.training import fsdp


def decay_at(decay: float, step: int) -> float:
    """The decay after a step, counted from 0: min(decay, (1 + step) / (10 + step)).

    After ten steps the initial weights contribute less than 1e-4.
    """
    return min(decay, (1 + step) / (10 + step))


class ExponentialMovingAverage:
    """Averages of float32 weights by name, each in its weight's memory layout."""

    def __init__(self, decay: float, weights: Mapping[str, Tensor]) -> None:
        self.decay, self.weights = decay, dict(weights)
        self.averages = {name: weight.detach().clone() for name, weight in weights.items()}

    def update(self, step: int) -> None:
        """Update the averages after a step, counted from 0."""
        update = get_ema_multi_avg_fn(decay_at(self.decay, step))  # type: ignore[no-untyped-call]
        weights = [weight.detach() for weight in self.weights.values()]
        update(list(self.averages.values()), weights, None)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Swap averages and weights within the block, without a third copy of all."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self.weights.items():
            before = weight.clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(before)

    def state(self) -> dict[str, Tensor]:
        """The averages by name: full tensors, contiguous, on the CPU."""
        return {name: fsdp.full_tensor(average) for name, average in self.averages.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `state` returned; raises `StageFailed` for averages of other weights."""
        if tensors.keys() != self.averages.keys():
            raise StageFailed("the saved averages are of other weights; delete the checkpoint")
        for name, average in self.averages.items():
            average.copy_(fsdp.local_shard(tensors[name], average))
