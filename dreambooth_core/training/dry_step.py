"""Memory of a stage's operations, measured by running them with fake tensors (shapes without data).

What is kept for the backward pass follows from the model's code instead of a formula. Operations
are those of this machine's device, in the number type of the forward pass.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dreambooth_core.config import Config
from dreambooth_core.diffusion import adapters
from dreambooth_core.diffusion.families import Family, Parts, Tensors
from dreambooth_core.diffusion.objectives import (
    add_noise,
    example_losses,
    prior_preservation,
    target,
)


class LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the bytes of live storages that operations allocate, except those of `known` tensors."""

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._storages: set[int] = set()
        for tensor in known:
            self._add(tensor.untyped_storage(), 0)

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                self._add(storage, storage.nbytes())
        return result

    def _add(self, storage: torch.UntypedStorage, count: int) -> None:
        if id(storage) in self._storages:
            return
        self._storages.add(id(storage))
        self.bytes += count
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._freed, id(storage), count)

    def _freed(self, storage: int, count: int) -> None:
        self._storages.discard(storage)
        self.bytes -= count


class RealIndices(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps token ids, masks and lengths as real tensors, since shapes depend on their values."""

    def __torch_dispatch__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        given = [value for value in tree_leaves((args, named)) if isinstance(value, Tensor)]
        if any(isinstance(value, FakeTensor) for value in given):
            if function is torch.ops.aten.index.Tensor:
                args = (args[0], [index for mask in args[1] for index in _indices(mask)])
            return function(*args, **named)
        found = None if given else function(*args, **named)
        if isinstance(found, Tensor) and found.is_floating_point():
            return found
        with unset_fake_temporarily():
            return function(*args, **named)


def _indices(mask: Tensor | None) -> tuple[Tensor | None, ...]:
    """The indices that a real boolean mask selects; any other index unchanged."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or isinstance(mask, FakeTensor):
        return (mask,)
    with unset_fake_temporarily():
        return tuple(mask.nonzero().unbind(1))


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one process's step, without its weights."""

    inputs: int
    """The batch, and token ids or conditioning of the prompts."""
    peak: int
    """Peak of gradients and activations together."""


def measure_step(
    family: Family, parts: Parts, config: Config, forward: torch.dtype, device: torch.device
) -> StepMemory:
    """Run the config's step with components on the meta device that are prepared for training.

    `forward` is the number type of the forward pass. The components cannot be used afterwards.
    """
    components = [parts[name] for name in (family.denoiser, *family.text_encoders)]
    latents = _latent_shape(family, parts, config.model.resolution)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for component in components:
            materialize(component, device)
        weights = [weight for component in components for weight in component.parameters()]
        if config.optimizer.fused_backward:
            _free_gradients(weights)
        with RealIndices():  # type: ignore[no-untyped-call]
            step = _Step(family, parts, config)
            batch = {name: value.to(device) for name, value in _batch(config, latents).items()}
            prompts = step.prompts(device)
            inputs = [*batch.values(), *prompts.values()]
            with LiveStorages([*inputs, *weights]) as live:
                for _ in range(min(2, config.train.gradient_accumulation_steps)):
                    with _autocast(device, forward):
                        loss = step.loss(batch, prompts)
                    loss.backward()  # type: ignore[no-untyped-call]
                    del loss
    return StepMemory(sum(value.nbytes for value in inputs), live.peak)


def measure_prompt(family: Family, parts: Parts, config: Config, device: torch.device) -> int:
    """Peak bytes of encoding one prompt with frozen text encoders on the meta device."""
    encoders = [parts[name] for name in family.text_encoders]
    step = _Step(family, parts, config)
    return _measured(encoders, device, torch.float32, lambda: step.prompts(device))


def measure_image(family: Family, parts: Parts, config: Config, device: torch.device) -> int:
    """Peak bytes of encoding one image of the training resolution with a float32 autoencoder."""
    side = config.model.resolution

    def encode() -> object:
        return family.encode_images(parts, torch.empty(1, 3, side, side, device=device))

    return _measured([parts[family.autoencoder]], device, torch.float32, encode)


def measure_denoising(
    family: Family, parts: Parts, config: Config, forward: torch.dtype, device: torch.device
) -> int:
    """Peak bytes of one prediction of the sampler's batch, both halves of the guidance in one forward."""
    halves = 2 if "negative_prompt" in family.guidance(config.sampler) else 1
    count = halves * config.sampler.batch_size
    latents = _latent_shape(family, parts, config.model.resolution)
    encoders = [parts[name] for name in family.text_encoders]

    def predict() -> object:
        batch = {name: value.to(device) for name, value in _rows(latents, count, 1).items()}
        return step.predict(batch, prompts, slice(None))

    with FakeTensorMode(allow_non_fake_inputs=True):
        for encoder in encoders:
            materialize(encoder, device)
        step = _Step(family, parts, config)
        with RealIndices(), torch.no_grad():  # type: ignore[no-untyped-call]
            prompts = family.encode_prompts(parts, step.tokens(device))
    step.encodes = False
    return _measured([parts[family.denoiser]], device, forward, predict)


def measure_decoding(
    family: Family, parts: Parts, config: Config, device: torch.device, count: int
) -> int:
    """Peak bytes of decoding `count` images in the autoencoder's number type."""
    autoencoder, side = parts[family.autoencoder], config.model.resolution
    dtype = next(autoencoder.parameters()).dtype
    encoded: list[Any] = []
    encode = autoencoder.encode

    def recorded(pixels: Tensor) -> Any:
        encoded.append(encode(pixels))
        return encoded[0]

    autoencoder.encode = recorded
    with torch.no_grad():
        family.encode_images(parts, torch.empty(1, 3, side, side, device="meta", dtype=dtype))
    latents = encoded[0].latent if hasattr(encoded[0], "latent") else encoded[0].latent_dist.mean
    shape = (count, *latents.shape[1:])

    def decode() -> object:
        return autoencoder.decode(torch.empty(shape, device=device, dtype=dtype))

    return _measured([autoencoder], device, torch.float32, decode)


def _measured(
    components: Iterable[nn.Module],
    device: torch.device,
    forward: torch.dtype,
    work: Callable[[], object],
) -> int:
    """Peak bytes that `work` allocates, without gradients and without the components' weights."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for component in components:
            materialize(component, device)
        weights = [weight for component in components for weight in component.parameters()]
        modes = RealIndices(), LiveStorages(weights)  # type: ignore[no-untyped-call]
        with torch.no_grad(), _autocast(device, forward), modes[0], modes[1] as live:
            work()
    return int(live.peak)


class _Step:
    """The operations of `DreamBooth.training_step`."""

    def __init__(self, family: Family, parts: Parts, config: Config) -> None:
        self.family, self.parts, self.config = family, parts, config
        self.objective = family.objective(parts)
        text = [weight for name in family.text_encoders for weight in parts[name].parameters()]
        self.encodes = any(weight.requires_grad for weight in text)

    def tokens(self, device: torch.device) -> Tensors:
        """Token ids of the instance prompt and, with the prior, of the class prompt."""
        subject = self.config.subject
        texts = [subject.instance_prompt]
        if self.config.prior.enabled:
            texts.append(subject.class_prompt)
        tokens = self.family.tokenize(self.parts, [subject.fill(text) for text in texts])
        return {name: ids.to(device) for name, ids in tokens.items()}

    def prompts(self, device: torch.device) -> Tensors:
        """Token ids if text encoders train, else conditioning."""
        moved = self.tokens(device)
        if self.encodes:
            return moved
        with torch.no_grad():
            return self.family.encode_prompts(self.parts, moved)

    def loss(self, batch: Tensors, prompts: Tensors) -> Tensor:
        times, is_class = batch["times"], batch["is_class"]
        prediction = self.predict(batch, prompts, slice(None))
        targets = target(self.objective, batch["latents"], batch["noise"], times)
        if self.config.prior_target == "prediction":
            with torch.no_grad(), adapters.disabled(self.family, self.parts):
                self.predict(batch, prompts, is_class)
        losses = example_losses(self.config.loss, self.objective, prediction, targets, times)
        return prior_preservation(losses, is_class, self.config.prior.loss_weight)[0]

    def predict(self, batch: Tensors, prompts: Tensors, rows: Any) -> Tensor:
        if self.encodes:
            prompts = self.family.encode_prompts(self.parts, prompts)
        conditioning = {name: value[batch["prompt_of"][rows]] for name, value in prompts.items()}
        conditioning["sizes"] = batch["sizes"][rows]
        times, latents, noise = (batch[name][rows] for name in ("times", "latents", "noise"))
        noisy = add_noise(self.objective, latents, noise, times)
        timesteps = self.objective.timesteps_of(times)
        return self.family.predict(self.parts, noisy, timesteps, conditioning)


def materialize(component: nn.Module, device: torch.device) -> None:
    """Allocate every tensor of a component on the meta device on `device`; shared tensors stay shared."""
    allocated: dict[Tensor, Tensor] = {}
    for module in component.modules():
        tensors = {**module._parameters, **module._buffers, **vars(module)}
        for name, value in tensors.items():
            if isinstance(value, Tensor):
                if value not in allocated:
                    allocated[value] = _allocate(value, device)
                setattr(module, name, allocated[value])


def _allocate(value: Tensor, device: torch.device) -> Tensor:
    empty = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device=device)
    if isinstance(value, nn.Parameter):
        return nn.Parameter(empty, requires_grad=value.requires_grad)
    return empty


def _latent_shape(family: Family, parts: Parts, side: int) -> torch.Size:
    dtype = next(parts[family.autoencoder].parameters()).dtype
    with torch.no_grad():
        photo = torch.empty(1, 3, side, side, device="meta", dtype=dtype)
        return family.encode_images(parts, photo).mean.shape[1:]


def _batch(config: Config, latents: torch.Size) -> dict[str, Tensor]:
    """Instance examples and, with the prior, as many class examples, for one process."""
    kinds = 2 if config.prior.enabled else 1
    return _rows(latents, kinds * config.train.batch_size // config.train.num_processes, kinds)


def _rows(latents: torch.Size, count: int, kinds: int) -> dict[str, Tensor]:
    """`count` examples; with two `kinds` every second one is a class example."""
    is_class = torch.arange(count) % kinds
    return {
        "latents": torch.empty(count, *latents),
        "noise": torch.empty(count, *latents),
        "times": torch.empty(count),
        "is_class": is_class.bool(),
        "prompt_of": is_class,
        "sizes": torch.empty(count, 6),
    }


def _free_gradients(weights: Iterable[Tensor]) -> None:
    def free(weight: Tensor) -> None:
        weight.grad = None

    for weight in weights:
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(free)  # type: ignore[no-untyped-call]


def _autocast(device: torch.device, forward: torch.dtype) -> Any:
    if forward == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=forward)
