"""Each family against its own pipeline of diffusers: the same numbers in, the same numbers out."""

import inspect
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils import _pytree as pytree

from dreambooth_core.config import Sampler
from dreambooth_core.diffusion.families import Family, Parts
from dreambooth_core.diffusion.objectives import Objective
from dreambooth_core.errors import ConfigError
from tests.dreambooth_core.diffusion.families import redraw
from tests.dreambooth_core.diffusion.families.cases import PROMPTS, pixels, sizes


class Walk(NamedTuple):
    """An unguided run of the pipeline from pure noise, on which the first answer counts always.

    A flow's velocity, kept, leads as far in two steps as in one, which not all samplers can take.
    """

    noise: Tensor
    """(prompts, channels, h, w)."""
    given: dict[str, list[Tensor]]
    """What the denoiser was called with first, by the names of its arguments."""
    order: Tensor
    """Where each number of the pipeline's latents of one image, packed or not, stands in ours."""
    latents: Tensor
    """The pipeline's, where it arrived."""
    timestep: Tensor
    sigma: Tensor


def _numbers(value: Any) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(value) if not isinstance(leaf, bool)]
    kinds = (int, float, Tensor)
    return [torch.as_tensor(leaf).double() for leaf in leaves if isinstance(leaf, kinds)]


class Ear:
    """Remembers the first call of a module and makes every later one give the same answer."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.calls: list[tuple[Any, Any]] = []

    def __enter__(self) -> "Ear":
        self.hook = self.module.register_forward_hook(self._listen, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()

    def _listen(self, module: torch.nn.Module, args: Any, kwargs: Any, answer: Any) -> Any:
        given = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        self.calls.append((given, answer))
        return self.calls[0][1]

    def given(self) -> dict[str, list[Tensor]]:
        named = {name: _numbers(value) for name, value in self.calls[0][0].items()}
        return {name: numbers for name, numbers in named.items() if numbers}


def _walked(family: Family, parts: Parts, swap: Any, output_type: str) -> tuple[Any, Any]:
    """The pipeline's images, and the pipeline; `swap` gives other latents for its last ones."""
    pipeline = family.pipeline(parts)
    images, steps = pixels(family), 2 if family.flow else 1
    guidance = dict(family.guidance(Sampler(guidance_scale=1)))
    if "negative_prompt" in guidance:
        guidance["negative_prompt"] = [guidance["negative_prompt"]] * len(PROMPTS)

    def at_step_end(pipeline: Any, index: int, timestep: Any, values: dict[str, Any]) -> Any:
        return {"latents": swap(values["latents"])} if index == steps - 1 else {}

    found = pipeline(
        prompt=list(PROMPTS),
        num_inference_steps=steps,
        height=images.shape[-2],
        width=images.shape[-1],
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))],
        output_type=output_type,
        callback_on_step_end=at_step_end,
        **guidance,
    )
    return found.images, pipeline


@pytest.fixture(scope="module")
def walk(family: Family, frozen: Parts) -> Walk:
    with torch.no_grad():
        shape = family.encode_images(frozen, pixels(family)).mean.shape[1:]
    noise = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    )
    arrived: list[Tensor] = []
    with Ear(frozen[family.denoiser]) as ear:
        keep = lambda latents: arrived.append(latents) or latents  # noqa: E731
        _, pipeline = _walked(family, frozen, keep, "latent")
    given = ear.given()
    seen = torch.cat([part.flatten() for part in next(iter(given.values()))])
    order = _order(seen[: noise[0].numel()], noise[0].double().flatten())
    scheduler = pipeline.scheduler
    return Walk(noise, given, order, arrived[0], scheduler.timesteps[0], scheduler.sigmas[0])


def _order(packed: Tensor, ours: Tensor) -> Tensor:
    """Which of our numbers each packed one is; they are all different."""
    order = torch.arange(len(ours))
    if not torch.allclose(packed, ours, atol=1e-4):
        order[packed.argsort()] = ours.argsort()
        assert torch.equal(packed, ours[order])
        assert len(ours.unique()) == len(ours), "smaller latents would show where each number goes"
    return order


def _predicted(family: Family, parts: Parts, walk: Walk) -> Tensor:
    conditioning = family.encode_prompts(parts, family.tokenize(parts, PROMPTS))
    told = {**conditioning, "sizes": sizes(pixels(family))}
    with torch.no_grad():
        return family.predict(parts, walk.noise, walk.timestep.repeat(2), told)


def test_denoiser_is_called_as_the_pipeline_calls_it(
    family: Family, frozen: Parts, walk: Walk
) -> None:
    """So prompts, sizes, packing, places, timesteps and told guidance are those of the pipeline."""
    with Ear(frozen[family.denoiser]) as ear:
        _predicted(family, frozen, walk)
    given = ear.given()
    assert given.keys() == walk.given.keys()
    for name, numbers in given.items():
        for mine, theirs in zip(numbers, walk.given[name], strict=True):
            mine, theirs = torch.broadcast_tensors(mine, theirs)
            assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=f"{name}: {mine} != {theirs}")


def test_prediction_means_what_the_pipeline_takes_it_for(
    family: Family, frozen: Parts, walk: Walk
) -> None:
    """The clean latents that objective and prediction imply are where the pipeline arrives."""
    answer = _predicted(family, frozen, walk)
    assert answer.shape == walk.noise.shape
    clean = _clean(family.objective(frozen), walk, answer).flatten(1)[:, walk.order]
    assert_close(walk.latents.reshape(clean.shape), clean, rtol=1e-3, atol=1e-3)


def _clean(objective: Objective, walk: Walk, answer: Tensor) -> Tensor:
    if objective.kind == "flow":
        return walk.noise - walk.sigma * answer
    time = (walk.timestep + 0.5) / objective.levels
    signal, sigma = objective.signal_and_sigma(time.reshape(1))
    if objective.kind == "epsilon":
        return (walk.noise - sigma * answer) / signal
    return signal * walk.noise - sigma * answer


def test_latents_are_what_the_pipeline_decodes(family: Family, frozen: Parts, walk: Walk) -> None:
    """Handed our latents, it makes the images that the autoencoder alone makes of the pixels."""
    images, vae = pixels(family), frozen[family.autoencoder]
    of_videos = any(weight.ndim == 5 for weight in vae.parameters())
    with torch.no_grad():
        mine = family.encode_images(frozen, images).mean.flatten(1)[:, walk.order]
        alone = vae(images.unsqueeze(2) if of_videos else images).sample
    alone = alone.squeeze(2) if of_videos else alone
    decoded, _ = _walked(family, frozen, lambda latents: mine.reshape(latents.shape), "pt")
    assert_close(decoded, (alone / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_is_heard_or_refused(family: Family, frozen: Parts) -> None:
    plain = redraw.drawn(family, frozen, Sampler(guidance_scale=4))
    try:
        other = redraw.drawn(family, frozen, Sampler(guidance_scale=4, negative_prompt="a blot"))
    except ConfigError:
        return
    assert plain != other
