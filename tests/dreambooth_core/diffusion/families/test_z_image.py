"""Z-Image compared with diffusers' pipeline."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth_core.config import Loss, Sampler
from dreambooth_core.diffusion.families import Parts
from dreambooth_core.diffusion.families.z_image import FAMILY
from dreambooth_core.diffusion.objectives import add_noise, example_losses, target
from tests.dreambooth_core.diffusion.families import flows
from tests.tiny_bases import ZImagePipeline as tiny


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return FAMILY.load(tiny.build(tmp_path_factory.mktemp("z_image") / "base"))


class Perfect(torch.nn.Module):
    """A perfect Z-Image transformer for given latents: noisy = noise + t * velocity with time t = 0
    for noise, so that velocity = latents - noise = (latents - noisy) / (1 - t)."""

    in_channels = 4
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents

    def forward(self, noisy: list[Tensor], times: Tensor, *_: Any, **__: Any) -> tuple[list]:
        rows = zip(self.latents, noisy, times, strict=True)
        return ([(image[:, None] - one) / (1 - time) for image, one, time in rows],)


def test_a_perfect_transformer_has_no_loss_and_samples_its_latents(parts: Parts) -> None:
    latents, noise = flows.normal(2, 4, 8, 4), flows.normal(4, 4, 8, 4)[2:]
    perfect = Parts({**parts.components, "transformer": Perfect(latents)})
    objective, times = FAMILY.objective(parts), torch.tensor([0.2, 0.9])
    noisy = add_noise(objective, latents, noise, times)
    conditioning = flows.encoded(FAMILY, parts, flows.PROMPTS)
    found = FAMILY.predict(perfect, noisy, objective.timesteps_of(times), conditioning)
    wanted = target(objective, latents, noise, times)
    assert example_losses(Loss(), objective, found, wanted, times).max() < 1e-10
    found = flows.sampled(FAMILY.pipeline(perfect), noise, guidance_scale=0)
    torch.testing.assert_close(found, latents, atol=1e-5, rtol=0)


def test_euler_steps_equal_the_pipelines_sampling(parts: Parts) -> None:
    pipeline = FAMILY.pipeline(parts)
    noise = flows.normal(2, 4, 8, 4)
    theirs = flows.sampled(pipeline, noise, guidance_scale=0)
    conditioning = flows.encoded(FAMILY, parts, flows.PROMPTS)
    ours = flows.euler_steps(FAMILY, parts, noise, conditioning, pipeline.scheduler.sigmas)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_sampled_latents_decode_as_the_autoencoders_own(parts: Parts) -> None:
    raw = parts["vae"].encode(flows.photos()).latent_dist
    noise = flows.normal(*raw.mean.shape)
    latents = FAMILY.encode_images(parts, flows.photos()).draw(noise)
    wanted = flows.unit_range(parts["vae"].decode(raw.mean + raw.std * noise).sample)
    found = flows.decoded(FAMILY, parts, "all_final_layer.2-1", latents)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_prompts_are_encoded_as_single_prompts_by_the_pipeline(parts: Parts) -> None:
    found = flows.encoded(FAMILY, parts, flows.PROMPTS)
    for states, mask, prompt in zip(*found.values(), flows.PROMPTS, strict=True):
        theirs, _ = FAMILY.pipeline(parts).encode_prompt(prompt, device="cpu")
        assert torch.equal(states[mask], theirs[0])
        assert not states[~mask].any()


def test_a_prompts_encoding_does_not_depend_on_the_others(parts: Parts) -> None:
    table = flows.encoded(FAMILY, parts, flows.PROMPTS)
    alone = flows.encoded(FAMILY, parts, flows.PROMPTS[1:])
    assert all(torch.equal(table[name][1:], alone[name]) for name in table)


def test_padding_behind_a_prompt_changes_no_prediction(parts: Parts) -> None:
    noisy, timesteps = flows.normal(2, 4, 8, 4), torch.tensor([300.0, 800.0])
    table = flows.encoded(FAMILY, parts, flows.PROMPTS)
    changed = {**table, "hidden_states": table["hidden_states"].clone()}
    changed["hidden_states"][~table["mask"]] = 7.0
    plain = FAMILY.predict(parts, noisy, timesteps, table)
    assert torch.equal(FAMILY.predict(parts, noisy, timesteps, changed), plain)


def test_guidance_scale_1_is_the_pipelines_0() -> None:
    assert FAMILY.guidance(Sampler(guidance_scale=1))["guidance_scale"] == 0
    assert FAMILY.guidance(Sampler(guidance_scale=5))["guidance_scale"] == 4
