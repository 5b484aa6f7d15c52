"""A running average of the weights, which often is the better model than the last step's.

Polyak & Juditsky 1992; the exponential kind with a decay that warms up, as Ho et al. 2020
(arXiv:2006.11239) sample from and TensorFlow's ExponentialMovingAverage describes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from dreambooth_core.errors import StageFailed
from dreambooth_core.training import fsdp


def decay_at(decay: float, step: int) -> float:
    """What the average keeps of itself after a step from 0: min(decay, (1 + step) / (10 + step)).

    So the start, which still is the base, fades: after ten steps it weighs less than a ten-thousandth.
    """
    return min(decay, (1 + step) / (10 + step))


class ExponentialMovingAverage:
    """Averages of float32 weights, by name, each in its weight's memory layout."""

    def __init__(self, decay: float, weights: Mapping[str, Tensor]) -> None:
        self.decay, self.weights = decay, dict(weights)
        self.averages = {name: weight.detach().clone() for name, weight in weights.items()}

    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        update = get_ema_multi_avg_fn(decay_at(self.decay, step))  # type: ignore[no-untyped-call]
        weights = [weight.detach() for weight in self.weights.values()]
        update(list(self.averages.values()), weights, None)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The averages in the place of the weights while it lasts, without a third copy."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self.weights.items():
            kept = weight.clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """The averages by name, whole, contiguous and on the CPU."""
        return {name: fsdp.whole(average) for name, average in self.averages.items()}

    def put_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave; raises `StageFailed` when it is of other weights."""
        if tensors.keys() != self.averages.keys():
            raise StageFailed("the saved averages are of other weights; delete the checkpoint")
        for name, average in self.averages.items():
            average.copy_(fsdp.piece(tensors[name], average))
