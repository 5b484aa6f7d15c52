"""Noise, targets and DreamBooth's loss, against the formulas and against diffusers."""

import pytest
import torch

from dreambooth_core.errors import ModelError
from dreambooth_core.objectives import (
    add_noise,
    diffusion,
    example_losses,
    prior_preservation,
    target,
)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_agrees_with_diffusers(kind: str) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(prediction_type=kind, beta_schedule="scaled_linear")
    objective = diffusion(kind, scheduler.alphas_cumprod)
    latents, noise = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 500, 999])
    noisy = add_noise(objective, latents, noise, timesteps)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, timesteps))
    wanted = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(target(objective, latents, noise, timesteps), wanted)


def test_velocity_and_noisy_latents_give_the_latents_back() -> None:
    objective = diffusion("v_prediction", torch.linspace(0.999, 0.001, 10))
    latents, noise = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 3, 6, 9])
    signal, sigma = objective.signal[t].view(-1, 1, 1, 1), objective.sigma[t].view(-1, 1, 1, 1)
    noisy, velocity = add_noise(objective, latents, noise, t), target(objective, latents, noise, t)
    torch.testing.assert_close(signal * noisy - sigma * velocity, latents)


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(ModelError, match="sample"):
        diffusion("sample", torch.ones(3))


def test_losses_are_one_number_per_example() -> None:
    wanted = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    assert example_losses(torch.zeros(2, 3, 2, 2), wanted).tolist() == [1.0, 4.0]


def test_prior_preservation_whatever_the_order() -> None:
    losses = torch.tensor([1.0, 10.0, 3.0, 20.0, 30.0])
    is_class = torch.tensor([False, True, False, True, True])
    total, instance, classes = prior_preservation(losses, is_class, 0.5)
    assert (total, instance, classes) == (2 + 0.5 * 20, 2, 20)
    order = torch.tensor([4, 2, 0, 3, 1])
    assert prior_preservation(losses[order], is_class[order], 0.5)[0] == total


def test_prior_preservation_without_class_examples() -> None:
    total, instance, classes = prior_preservation(torch.tensor([1.0, 3.0]), torch.zeros(2) > 0, 1.0)
    assert (total, instance, classes) == (2, 2, 0)


def test_class_gradient_carries_the_weight() -> None:
    losses = torch.ones(4, requires_grad=True)
    is_class = torch.tensor([False, False, True, True])
    prior_preservation(losses, is_class, 0.25)[0].backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [0.5, 0.5, 0.125, 0.125]
