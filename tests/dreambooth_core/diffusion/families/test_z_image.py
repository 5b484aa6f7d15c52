"""Z-Image beside its own pipeline."""

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


class Knowing(torch.nn.Module):
    """A Z-Image transformer that knows the image: at time t, 0 in noise, noisy = noise + t * way
    with the way from noise to image, so what is left of it is (image - noisy) / (1 - t)."""

    in_channels = 4
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents = latents

    def forward(self, noisy: list[Tensor], times: Tensor, *_: Any, **__: Any) -> tuple[list]:
        rows = zip(self.latents, noisy, times, strict=True)
        return ([(image[:, None] - seen) / (1 - time) for image, seen, time in rows],)


def test_a_transformer_that_knows_the_image_has_no_loss_and_samples_it(parts: Parts) -> None:
    latents, noise = flows.normal(2, 4, 8, 4), flows.normal(4, 4, 8, 4)[2:]
    knowing = Parts({**parts.components, "transformer": Knowing(latents)})
    objective, times = FAMILY.objective(parts), torch.tensor([0.2, 0.9])
    noisy = add_noise(objective, latents, noise, times)
    conditioning = flows.encoded(FAMILY, parts, flows.PROMPTS)
    found = FAMILY.predict(knowing, noisy, objective.timesteps_of(times), conditioning)
    wanted = target(objective, latents, noise, times)
    assert example_losses(Loss(), objective, found, wanted, times).max() < 1e-10
    reached = flows.sampled(FAMILY.pipeline(knowing), noise, guidance_scale=0)
    torch.testing.assert_close(reached, latents, atol=1e-5, rtol=0)


def test_walking_along_the_predictions_is_sampling(parts: Parts) -> None:
    pipeline = FAMILY.pipeline(parts)
    noise = flows.normal(2, 4, 8, 4)
    theirs = flows.sampled(pipeline, noise, guidance_scale=0)
    conditioning = flows.encoded(FAMILY, parts, flows.PROMPTS)
    ours = flows.walked(FAMILY, parts, noise, conditioning, pipeline.scheduler.sigmas)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_drawn_latents_decode_to_what_the_autoencoder_itself_drew(parts: Parts) -> None:
    own = parts["vae"].encode(flows.photos()).latent_dist
    noise = flows.normal(*own.mean.shape)
    latents = FAMILY.encode_images(parts, flows.photos()).draw(noise)
    wanted = flows.shown(parts["vae"].decode(own.mean + own.std * noise).sample)
    found = flows.decoded(FAMILY, parts, "all_final_layer.2-1", latents)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_each_prompt_is_encoded_as_by_the_pipeline_alone(parts: Parts) -> None:
    found = flows.encoded(FAMILY, parts, flows.PROMPTS)
    for states, mask, prompt in zip(*found.values(), flows.PROMPTS, strict=True):
        theirs, _ = FAMILY.pipeline(parts).encode_prompt(prompt, device="cpu")
        assert torch.equal(states[mask], theirs[0])
        assert not states[~mask].any()


def test_a_prompt_does_not_tell_which_ones_stand_beside_it(parts: Parts) -> None:
    table = flows.encoded(FAMILY, parts, flows.PROMPTS)
    alone = flows.encoded(FAMILY, parts, flows.PROMPTS[1:])
    assert all(torch.equal(table[name][1:], alone[name]) for name in table)


def test_padding_behind_a_prompt_changes_no_prediction(parts: Parts) -> None:
    noisy, timesteps = flows.normal(2, 4, 8, 4), torch.tensor([300.0, 800.0])
    table = flows.encoded(FAMILY, parts, flows.PROMPTS)
    spoilt = {**table, "hidden_states": table["hidden_states"].clone()}
    spoilt["hidden_states"][~table["mask"]] = 7.0
    plain = FAMILY.predict(parts, noisy, timesteps, table)
    assert torch.equal(FAMILY.predict(parts, noisy, timesteps, spoilt), plain)


def test_a_guidance_scale_of_one_is_none() -> None:
    assert FAMILY.guidance(Sampler(guidance_scale=1))["guidance_scale"] == 0
    assert FAMILY.guidance(Sampler(guidance_scale=5))["guidance_scale"] == 4
