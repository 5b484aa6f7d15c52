"""Noise schedulers by name: accepted and refused ones for each objective."""

import diffusers
import pytest
import torch

from dreambooth_core.diffusion import noise_schedulers
from dreambooth_core.errors import ConfigError

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
EPSILON = diffusers.DDPMScheduler(**BETAS, clip_sample=False)
VELOCITY = diffusers.DDPMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False)
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
SHIFTING = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


@pytest.mark.parametrize("base", [EPSILON, VELOCITY], ids=["epsilon", "velocity"])
@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_schedulers_of_a_diffusion(base, name):
    made = noise_schedulers.load_scheduler(name, base, flow=False)
    assert type(made).__name__ == name
    assert made.config.prediction_type == base.config.prediction_type
    assert torch.equal(made.alphas_cumprod, base.alphas_cumprod)


@pytest.mark.parametrize("base", [FLOW, SHIFTING], ids=["fixed", "shifting"])
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_schedulers_of_a_flow(base, name):
    assert type(noise_schedulers.load_scheduler(name, base, flow=True)).__name__ == name


@pytest.mark.parametrize(
    ("base", "flow", "name"),
    [
        (EPSILON, False, "FlowMatchEulerDiscreteScheduler"),  # another objective
        (EPSILON, False, "EDMEulerScheduler"),  # other noise levels
        (EPSILON, False, "DDIMInverseScheduler"),  # from images to noise
        (EPSILON, False, "RePaintScheduler"),  # other arguments of set_timesteps
        (FLOW, True, "DDIMScheduler"),
        (FLOW, True, "FlowMatchLCMScheduler"),  # draws from the global generator
    ],
)
def test_unsuitable_schedulers_are_refused(base, flow, name):
    with pytest.raises(ConfigError, match=rf"{name} cannot sample a model of .*: use one such"):
        noise_schedulers.load_scheduler(name, base, flow)


@pytest.mark.parametrize("name", ["NoSuchScheduler", "UNet2DModel", "os"])
def test_only_noise_schedulers_of_diffusers_are_known(name):
    with pytest.raises(ConfigError, match=f"diffusers has no {name}"):
        noise_schedulers.load_scheduler(name, EPSILON, flow=False)


def test_the_trial_does_not_use_the_global_generator():
    before = torch.get_rng_state()
    noise_schedulers.load_scheduler("EulerAncestralDiscreteScheduler", EPSILON, flow=False)
    assert torch.equal(torch.get_rng_state(), before)
