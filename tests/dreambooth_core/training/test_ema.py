"""Tests of the exponential moving average: equation, swapping, exact state."""

import pytest
import torch
from torch.nn import Parameter

from dreambooth_core.errors import StageFailed
from dreambooth_core.training.ema import ExponentialMovingAverage, decay_at


def _weights() -> dict[str, Parameter]:
    conv = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return {"unet/weight": conv.weight, "unet/bias": conv.bias}


def _move(weights: dict[str, Parameter], step: int) -> None:
    draws = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for weight in weights.values():
            weight.copy_(torch.randn(weight.shape, generator=draws))


def test_averages_match_the_equation() -> None:
    weights = _weights()
    expected = {name: weight.detach().double() for name, weight in weights.items()}
    average = ExponentialMovingAverage(0.6, weights)
    for step in range(12):
        _move(weights, step)
        average.update(step)
        keep = min(0.6, (1 + step) / (10 + step))
        expected = {name: keep * expected[name] + (1 - keep) * weights[name] for name in weights}
    for name, found in average.state().items():
        torch.testing.assert_close(found.double(), expected[name].detach(), rtol=1e-5, atol=1e-6)


def test_the_decay_warms_up() -> None:
    assert [decay_at(0.5, step) for step in (0, 8, 100)] == [0.1, 0.5, 0.5]
    assert decay_at(0.9999, 10**6) == 0.9999
    initial = 1.0
    for step in range(10):
        initial *= decay_at(0.9999, step)
    assert initial < 1e-4


def test_swapping_is_undone_exactly() -> None:
    weights = _weights()
    average = ExponentialMovingAverage(0.9, weights)
    _move(weights, 0)
    average.update(0)
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    saved = average.state()
    with average.swapped():
        assert all(torch.equal(weights[name], saved[name]) for name in weights)
    assert all(torch.equal(weights[name], before[name]) for name in weights)
    assert all(torch.equal(average.state()[name], saved[name]) for name in weights)


def test_a_resumed_average_is_bitwise_equal() -> None:
    weights = _weights()
    whole = ExponentialMovingAverage(0.9, weights)
    for step in range(4):
        _move(weights, step)
        whole.update(step)
    resumed = ExponentialMovingAverage(0.9, weights)
    resumed.load_state(whole.state())
    for step in range(4, 8):
        _move(weights, step)
        whole.update(step)
        resumed.update(step)
    assert all(torch.equal(whole.averages[name], resumed.averages[name]) for name in weights)
    for name, value in resumed.averages.items():
        assert value.stride() == weights[name].stride()
        assert not value.requires_grad


def test_averages_of_other_weights_are_refused() -> None:
    average = ExponentialMovingAverage(0.9, _weights())
    with pytest.raises(StageFailed, match="other weights"):
        average.load_state({"unet/weight": torch.zeros(8, 4, 3, 3)})
