"""Helpers for flow families: sampling by our functions and by diffusers' pipeline."""

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.diffusion.families import Family, Parts, Tensors

PROMPTS = ["a photo of a sks dog on the beach", "a cat"]


def photos() -> Tensor:
    """(2, 3, 64, 32) in [-1, 1]."""
    draw = torch.Generator().manual_seed(7)
    return torch.rand(2, 3, 64, 32, generator=draw) * 2 - 1


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(8))


def encoded(family: Family, parts: Parts, prompts: list[str]) -> Tensors:
    return family.encode_prompts(parts, family.tokenize(parts, prompts))


def sampled(pipeline: Any, noise: Tensor, **guidance: Any) -> Tensor:
    """The pipeline's latents after three steps from `noise`, both in its own layout."""
    latents = []

    def record(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict:
        latents.append(tensors["latents"])
        return {}

    pipeline(
        prompt=list(PROMPTS),
        latents=noise,
        num_inference_steps=3,
        height=64,
        width=32,
        output_type="latent",
        callback_on_step_end=record,
        **guidance,
    )
    return latents[-1]


def euler_steps(
    family: Family, parts: Parts, noise: Tensor, conditioning: Tensors, sigmas: Tensor
) -> Tensor:
    """Latents after Euler steps with `predict` from `noise`, over the noise levels `sigmas`."""
    latents = noise
    for level, after in pairwise(sigmas):
        timesteps = family.objective(parts).timesteps_of(level.expand(len(noise)))
        velocity = family.predict(parts, latents, timesteps, conditioning)
        latents = latents + (after - level) * velocity
    return latents


def decoded(family: Family, parts: Parts, last_layer: str, latents: Tensor) -> Tensor:
    """The pipeline's images of latents in its own layout, (2, 3, 64, 32) in [0, 1].

    The denoiser's last layer is set to zero, so that sampling does not change the latents.
    """
    zeroed = copy.deepcopy(parts["transformer"])
    for weight in zeroed.get_submodule(last_layer).parameters():
        weight.zero_()
    pipeline = family.pipeline(Parts({**parts.components, "transformer": zeroed}))
    size = {"height": 64, "width": 32, "num_inference_steps": 2}
    images: Tensor = pipeline(
        prompt=list(PROMPTS), latents=latents, output_type="pt", **size
    ).images
    return images


def unit_range(decoded: Tensor) -> Tensor:
    """Decoded pixels mapped from [-1, 1] to [0, 1], clipped."""
    return (decoded / 2 + 0.5).clamp(0, 1)
