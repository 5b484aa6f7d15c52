"""Noise schedulers by name: those that fit a model's objective, and those that are refused."""

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


@pytest.mark.parametrize("own", [EPSILON, VELOCITY], ids=["epsilon", "velocity"])
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
def test_a_diffusion_takes_what_leads_its_noise_to_images(own, name):
    made = noise_schedulers.load_scheduler(name, own, flow=False)
    assert type(made).__name__ == name
    assert made.config.prediction_type == own.config.prediction_type
    assert torch.equal(made.alphas_cumprod, own.alphas_cumprod)


@pytest.mark.parametrize("own", [FLOW, SHIFTING], ids=["fixed", "shifting"])
@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_a_flow_takes_what_follows_its_velocities(own, name):
    assert type(noise_schedulers.load_scheduler(name, own, flow=True)).__name__ == name


@pytest.mark.parametrize(
    ("own", "flow", "name"),
    [
        (EPSILON, False, "FlowMatchEulerDiscreteScheduler"),  # another objective
        (EPSILON, False, "EDMEulerScheduler"),  # other noise levels
        (EPSILON, False, "DDIMInverseScheduler"),  # the other way
        (EPSILON, False, "RePaintScheduler"),  # steps that the pipeline does not take
        (FLOW, True, "DDIMScheduler"),
        (FLOW, True, "FlowMatchLCMScheduler"),  # draws noise that no seed decides
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(own, flow, name):
    with pytest.raises(ConfigError, match=rf"{name} cannot draw from a model of .*: use one such"):
        noise_schedulers.load_scheduler(name, own, flow)


@pytest.mark.parametrize("name", ["NoSuchScheduler", "UNet2DModel", "os"])
def test_only_noise_schedulers_of_diffusers_are_known(name):
    with pytest.raises(ConfigError, match=f"diffusers has no {name}"):
        noise_schedulers.load_scheduler(name, EPSILON, flow=False)


def test_the_trial_draws_nothing_from_others():
    before = torch.get_rng_state()
    noise_schedulers.load_scheduler("EulerAncestralDiscreteScheduler", EPSILON, flow=False)
    assert torch.equal(torch.get_rng_state(), before)
