"""Each family compared with its diffusers pipeline on equal inputs."""

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


class PipelineRun(NamedTuple):
    """An unguided run of the pipeline from noise whose denoiser always returns its first output.

    A flow runs two steps, as not all samplers allow one; with a constant velocity both are equal.
    """

    noise: Tensor
    """(prompts, channels, h, w)."""
    arguments: dict[str, list[Tensor]]
    """The denoiser's first call: argument name -> tensors."""
    order: Tensor
    """Index in our latents of each element of the pipeline's latents of one image."""
    latents: Tensor
    """The pipeline's final latents."""
    timestep: Tensor
    sigma: Tensor


def _numbers(value: Any) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(value) if not isinstance(leaf, bool)]
    kinds = (int, float, Tensor)
    return [torch.as_tensor(leaf).double() for leaf in leaves if isinstance(leaf, kinds)]


class FirstCall:
    """Records a module's first call, and replaces the outputs of later calls by the first."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.calls: list[tuple[Any, Any]] = []

    def __enter__(self) -> "FirstCall":
        self.hook = self.module.register_forward_hook(self._record, with_kwargs=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()

    def _record(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        self.calls.append((arguments, output))
        return self.calls[0][1]

    def arguments(self) -> dict[str, list[Tensor]]:
        named = {name: _numbers(value) for name, value in self.calls[0][0].items()}
        return {name: numbers for name, numbers in named.items() if numbers}


def _run(family: Family, parts: Parts, swap: Any, output_type: str) -> tuple[Any, Any]:
    """The pipeline's images, and the pipeline; `swap` replaces its final latents."""
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
def run(family: Family, frozen: Parts) -> PipelineRun:
    with torch.no_grad():
        shape = family.encode_images(frozen, pixels(family)).mean.shape[1:]
    noise = torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    )
    final: list[Tensor] = []
    with FirstCall(frozen[family.denoiser]) as call:
        keep = lambda latents: final.append(latents) or latents  # noqa: E731
        _, pipeline = _run(family, frozen, keep, "latent")
    arguments = call.arguments()
    packed = torch.cat([part.flatten() for part in next(iter(arguments.values()))])
    order = _order(packed[: noise[0].numel()], noise[0].double().flatten())
    scheduler = pipeline.scheduler
    return PipelineRun(
        noise, arguments, order, final[0], scheduler.timesteps[0], scheduler.sigmas[0]
    )


def _order(packed: Tensor, ours: Tensor) -> Tensor:
    """Index in `ours` of each element of `packed`; all elements differ."""
    order = torch.arange(len(ours))
    if not torch.allclose(packed, ours, atol=1e-4):
        order[packed.argsort()] = ours.argsort()
        assert torch.equal(packed, ours[order])
        assert len(ours.unique()) == len(ours), "equal elements: use smaller latents"
    return order


def _predicted(family: Family, parts: Parts, run: PipelineRun) -> Tensor:
    conditioning = family.encode_prompts(parts, family.tokenize(parts, PROMPTS))
    inputs = {**conditioning, "sizes": sizes(pixels(family))}
    with torch.no_grad():
        return family.predict(parts, run.noise, run.timestep.repeat(2), inputs)


def test_denoiser_is_called_as_the_pipeline_calls_it(
    family: Family, frozen: Parts, run: PipelineRun
) -> None:
    """Equal prompts, sizes, packing, positions, timesteps and guidance inputs."""
    with FirstCall(frozen[family.denoiser]) as call:
        _predicted(family, frozen, run)
    arguments = call.arguments()
    assert arguments.keys() == run.arguments.keys()
    for name, numbers in arguments.items():
        for mine, theirs in zip(numbers, run.arguments[name], strict=True):
            mine, theirs = torch.broadcast_tensors(mine, theirs)
            assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=f"{name}: {mine} != {theirs}")


def test_prediction_implies_the_pipelines_final_latents(
    family: Family, frozen: Parts, run: PipelineRun
) -> None:
    """The clean latents by objective and prediction are the pipeline's final latents."""
    prediction = _predicted(family, frozen, run)
    assert prediction.shape == run.noise.shape
    clean = _clean(family.objective(frozen), run, prediction).flatten(1)[:, run.order]
    assert_close(run.latents.reshape(clean.shape), clean, rtol=1e-3, atol=1e-3)


def _clean(objective: Objective, run: PipelineRun, prediction: Tensor) -> Tensor:
    if objective.kind == "flow":
        return run.noise - run.sigma * prediction
    time = (run.timestep + 0.5) / objective.levels
    signal, sigma = objective.signal_and_sigma(time.reshape(1))
    if objective.kind == "epsilon":
        return (run.noise - sigma * prediction) / signal
    return signal * run.noise - sigma * prediction


def test_latents_are_what_the_pipeline_decodes(
    family: Family, frozen: Parts, run: PipelineRun
) -> None:
    """The pipeline decodes our latents to the autoencoder's reconstruction of the pixels."""
    images, vae = pixels(family), frozen[family.autoencoder]
    of_videos = any(weight.ndim == 5 for weight in vae.parameters())
    with torch.no_grad():
        mine = family.encode_images(frozen, images).mean.flatten(1)[:, run.order]
        alone = vae(images.unsqueeze(2) if of_videos else images).sample
    alone = alone.squeeze(2) if of_videos else alone
    decoded, _ = _run(family, frozen, lambda latents: mine.reshape(latents.shape), "pt")
    assert_close(decoded, (alone / 2 + 0.5).clamp(0, 1), rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_has_an_effect_or_is_refused(family: Family, frozen: Parts) -> None:
    plain = redraw.image_digest(family, frozen, Sampler(guidance_scale=4))
    try:
        other = redraw.image_digest(
            family, frozen, Sampler(guidance_scale=4, negative_prompt="a blot")
        )
    except ConfigError:
        return
    assert plain != other
