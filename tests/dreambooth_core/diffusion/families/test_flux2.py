"""FLUX.2 [klein] beside its own pipeline."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.functional import pixel_unshuffle

from dreambooth_core.config import Sampler
from dreambooth_core.diffusion.families import Parts
from dreambooth_core.diffusion.families.flux2 import FAMILY
from dreambooth_core.errors import ConfigError
from tests.dreambooth_core.diffusion.families import flows
from tests.tiny_bases import Flux2KleinPipeline as tiny


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return FAMILY.load(tiny.build(tmp_path_factory.mktemp("flux2") / "base"))


def test_each_prompt_is_encoded_as_by_the_pipeline_alone(parts: Parts) -> None:
    found = flows.encoded(FAMILY, parts, flows.PROMPTS)["hidden_states"]
    for row, prompt in zip(found, flows.PROMPTS, strict=True):
        theirs, _ = FAMILY.pipeline(parts).encode_prompt(prompt, device="cpu")
        assert torch.equal(row, theirs[0])


def test_patches_are_normalised_as_the_pipeline_does_it(parts: Parts) -> None:
    found = FAMILY.encode_images(parts, flows.photos()).mean
    theirs = FAMILY.pipeline(parts)._encode_vae_image(flows.photos(), generator=None)
    torch.testing.assert_close(found, theirs, atol=1e-6, rtol=0)


def test_drawn_latents_decode_to_what_the_autoencoder_itself_drew(parts: Parts) -> None:
    own = parts["vae"].encode(flows.photos()).latent_dist
    noise = flows.normal(*own.mean.shape)
    latents = FAMILY.encode_images(parts, flows.photos()).draw(pixel_unshuffle(noise, 2))
    wanted = flows.shown(parts["vae"].decode(own.mean + own.std * noise).sample)
    found = flows.decoded(FAMILY, parts, "proj_out", latents)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_walking_along_the_predictions_is_sampling(parts: Parts) -> None:
    pipeline = FAMILY.pipeline(parts)
    noise = flows.normal(2, 16, 4, 2)
    theirs = flows.sampled(pipeline, noise, guidance_scale=1)
    conditioning = flows.encoded(FAMILY, parts, flows.PROMPTS)
    ours = flows.walked(FAMILY, parts, noise, conditioning, pipeline.scheduler.sigmas)
    torch.testing.assert_close(pipeline._pack_latents(ours), theirs, atol=1e-5, rtol=0)


def test_a_distilled_base_stays_one(parts: Parts, tmp_path: Path) -> None:
    distilled = FAMILY.load(tiny.build(tmp_path / "base", is_distilled=True))
    assert FAMILY.pipeline(distilled).config.is_distilled
    assert not FAMILY.pipeline(parts).config.is_distilled


def test_a_negative_prompt_is_refused() -> None:
    assert FAMILY.guidance(Sampler(guidance_scale=4)) == {"guidance_scale": 4}
    with pytest.raises(ConfigError, match=r"sampler\.negative_prompt"):
        FAMILY.guidance(Sampler(negative_prompt="blurry"))
