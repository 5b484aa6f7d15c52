"""Tests of every optimizer: steps, exact state, bytes of state."""

import json
import math
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from dreambooth_core.config import Optimizer, Train
from dreambooth_core.errors import ConfigError, StageFailed
from dreambooth_core.training import optimizers

NAMES = get_args(Optimizer.model_fields["name"].annotation)
FUSABLE = [name for name in NAMES if name != "prodigy"]


class Net(torch.nn.Module):
    """A convolution in channels_last, a large and a small matrix, and vectors."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv = torch.nn.Conv2d(4, 16, 3)
            self.point = torch.nn.Conv2d(16, 8, 1)
            self.wide = torch.nn.Linear(8 * 16, 64)
            self.narrow = torch.nn.Linear(64, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.point(torch.relu(self.conv(images)))
        return self.narrow(torch.tanh(self.wide(found.flatten(1))))


class Training:
    """A net, its optimizer, and steps that are functions of their number."""

    def __init__(self, **options: Any) -> None:
        self.net = Net()
        self.names = {weight: f"net/{name}" for name, weight in self.net.named_parameters()}
        first, others = dict(list(self.names.items())[:2]), dict(list(self.names.items())[2:])
        rate = 1.0 if options["name"] == "prodigy" else 1e-2
        groups = [
            {"params": list(group), "names": list(group.values()), "lr": lr, "full_lr": lr}
            for group, lr in ((first, rate), (others, rate / 2))
        ]
        self.optimizer = optimizers.make(Optimizer(**options), groups)

    def step(self, number: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * (1 - number / 20)
        draws = torch.Generator().manual_seed(number)
        images = torch.randn(4, 4, 6, 6, generator=draws)
        self.net(images).square().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.names]


def _resumed(before: Training, **options: Any) -> Training:
    """A new training with the state of `before`, through plain tensors and JSON."""
    tensors, scalars = optimizers.state_of(before.optimizer, before.names)
    assert all(value.is_contiguous() for value in tensors.values())
    fresh = Training(**options)
    with torch.no_grad():
        for weight, value in zip(fresh.names, before.weights(), strict=True):
            weight.copy_(value)
    loaded = json.loads(json.dumps(scalars, allow_nan=False))
    optimizers.load_state(fresh.optimizer, fresh.names, tensors, loaded)
    return fresh


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def _trained(steps: range, **options: Any) -> Training:
    training = Training(**options)
    for number in steps:
        training.step(number)
    return training


@pytest.mark.parametrize(
    ("name", "fused_backward"),
    [*((name, False) for name in NAMES), *((name, True) for name in FUSABLE)],
)
def test_steps_resumed_from_its_state_are_bitwise_the_same(name: str, fused_backward: bool) -> None:
    options = {"name": name, "fused_backward": fused_backward}
    whole = _trained(range(8), **options)
    resumed = _resumed(_trained(range(3), **options), **options)
    for number in range(3, 8):
        resumed.step(number)
    assert _same(whole.weights(), resumed.weights())
    first, second = (optimizers.state_of(it.optimizer, it.names) for it in (whole, resumed))
    assert first[1] == second[1]
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(first[0][key], second[0][key]) for key in first[0])


@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_keeps_memory_layouts(name: str) -> None:
    before, after = Training(name=name), _trained(range(8), name=name)
    assert not any(torch.equal(a, b) for a, b in zip(before.names, after.names, strict=True))
    for weight in after.names:
        for value in after.optimizer.state[weight].values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                assert value.stride() == weight.stride()
    again = _resumed(after, name=name)
    for weight, same in zip(after.names, again.names, strict=True):
        assert weight.stride() == same.stride()
        for key, value in after.optimizer.state[weight].items():
            if isinstance(value, Tensor):
                assert value.stride() == again.optimizer.state[same][key].stride(), key


@pytest.mark.parametrize("name", FUSABLE)
def test_fused_backward_changes_no_bit(name: str) -> None:
    plain = _trained(range(5), name=name)
    inside = _trained(range(5), name=name, fused_backward=True)
    assert _same(plain.weights(), inside.weights())
    assert all(weight.grad is None for weight in inside.names)


def test_prodigy_refuses_fused_backward() -> None:
    with pytest.raises(ConfigError, match="all gradients together"):
        Training(name="prodigy", fused_backward=True)


def _gradient_peak(fused_backward: bool) -> tuple[int, int]:
    """Peak bytes of gradients in a backward pass, and bytes of all gradients."""
    layers = torch.nn.Sequential(*(torch.nn.Linear(32, 32) for _ in range(6)))
    names = {weight: name for name, weight in layers.named_parameters()}
    group = {"params": list(names), "names": list(names.values()), "lr": 1e-3}
    seen: list[int] = []

    def record(_weight: Tensor) -> None:
        seen.append(sum(weight.grad.nbytes for weight in names if weight.grad is not None))

    for weight in names:
        weight.register_post_accumulate_grad_hook(record)  # before the optimizer's hooks
    optimizers.make(Optimizer(fused_backward=fused_backward), [group])
    layers(torch.randn(2, 32)).sum().backward()
    return max(seen), sum(weight.nbytes for weight in names)


def test_fused_backward_holds_one_gradient_at_a_time() -> None:
    peak, everything = _gradient_peak(fused_backward=False)
    assert peak == everything
    peak, _ = _gradient_peak(fused_backward=True)
    assert peak == 32 * 32 * 4


def test_each_group_keeps_its_own_learning_rate() -> None:
    """Also with Prodigy, whose library uses only the first group's."""
    for name in NAMES:
        training = Training(name=name, weight_decay=0.0)
        before = training.weights()
        for group in training.optimizer.param_groups[1:]:
            group["full_lr"] = 0.0
        training.step(0)
        moved = [not torch.equal(a, b) for a, b in zip(before, training.names, strict=True)]
        assert moved == [True, True] + [False] * (len(moved) - 2), name


@pytest.mark.parametrize("fused_backward", [False, True])
def test_inference_weights_are_the_averages_and_are_restored(fused_backward: bool) -> None:
    options = {"name": "schedule_free", "fused_backward": fused_backward}
    training, plain = (_trained(range(4), **options) for _ in range(2))
    before = training.weights()
    with optimizers.inference_weights(training.optimizer):
        inside = training.weights()
    assert not _same(before, inside)
    for weight, y, x in zip(training.names, before, inside, strict=True):
        z = training.optimizer.state[weight]["z"]
        torch.testing.assert_close(y, 0.9 * x + 0.1 * z)  # equation 4 of the paper
    training.step(4)
    plain.step(4)
    assert _same(training.weights(), plain.weights())


def test_only_schedule_free_has_separate_inference_weights() -> None:
    for name in FUSABLE:
        training = _trained(range(2), name=name)
        before = training.weights()
        optimizers.training_mode(training.optimizer, False)
        assert _same(before, training.weights()) == (name != "schedule_free")


def test_the_state_of_another_optimizer_is_refused() -> None:
    adamw, came = _trained(range(1), name="adamw"), _trained(range(1), name="came")
    tensors, scalars = optimizers.state_of(adamw.optimizer, adamw.names)
    with pytest.raises(StageFailed, match="AdamW over other weights than this CAME"):
        optimizers.load_state(came.optimizer, came.names, tensors, scalars)
    del tensors["net/conv.weight/exp_avg"]
    tensors["net/other.weight/exp_avg"] = torch.zeros(1)
    with pytest.raises(StageFailed):
        optimizers.load_state(adamw.optimizer, adamw.names, tensors, scalars)


def test_missing_bitsandbytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match="needs bitsandbytes"):
        Training(name="adamw8bit")


def _held(optimizer: torch.optim.Optimizer, weight: Parameter) -> Iterator[int]:
    for key, value in optimizer.state[weight].items():
        if isinstance(value, Tensor) and not key.startswith("qmap"):  # shared by all weights
            yield value.untyped_storage().nbytes()


@pytest.mark.parametrize("name", NAMES)
def test_state_bytes_match_the_optimizer_state(name: str) -> None:
    training = _trained(range(1), name=name)
    for weight in training.names:
        expected = optimizers.state_bytes(name, weight.to("meta"))
        assert expected == sum(_held(training.optimizer, weight)), training.names[weight]


def _train(**options: Any) -> Train:
    return Train.model_validate({"steps": 10, **options})


def test_warm_up_is_linear_to_the_full_rate() -> None:
    for name in ("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"):
        train = _train(lr_schedule=name, lr_warmup_steps=4)
        assert [optimizers.lr_factor(train, step) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]


def test_schedules_match_their_equations() -> None:
    def factors(name: str) -> list[float]:
        train = _train(lr_schedule=name, lr_warmup_steps=1)
        return [optimizers.lr_factor(train, step) for step in range(1, 10)]

    done = [step / 9 for step in range(9)]
    assert factors("constant") == [1.0] * 9
    assert factors("linear") == pytest.approx([1 - share for share in done])
    cosine = [(1 + math.cos(math.pi * share)) / 2 for share in done]
    assert factors("cosine") == pytest.approx(cosine)
    assert factors("cosine_with_restarts") == pytest.approx((cosine[0], cosine[3], cosine[6]) * 3)
    assert factors("polynomial") == pytest.approx([(1 - share) ** 2 for share in done], abs=2e-7)
