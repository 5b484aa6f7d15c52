"""FLUX.2 [klein] compared with diffusers' pipeline."""

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


def test_prompts_are_encoded_as_single_prompts_by_the_pipeline(parts: Parts) -> None:
    found = flows.encoded(FAMILY, parts, flows.PROMPTS)["hidden_states"]
    for row, prompt in zip(found, flows.PROMPTS, strict=True):
        theirs, _ = FAMILY.pipeline(parts).encode_prompt(prompt, device="cpu")
        assert torch.equal(row, theirs[0])


def test_patches_are_normalised_as_by_the_pipeline(parts: Parts) -> None:
    found = FAMILY.encode_images(parts, flows.photos()).mean
    theirs = FAMILY.pipeline(parts)._encode_vae_image(flows.photos(), generator=None)
    torch.testing.assert_close(found, theirs, atol=1e-6, rtol=0)


def test_sampled_latents_decode_as_the_autoencoders_own(parts: Parts) -> None:
    raw = parts["vae"].encode(flows.photos()).latent_dist
    noise = flows.normal(*raw.mean.shape)
    latents = FAMILY.encode_images(parts, flows.photos()).draw(pixel_unshuffle(noise, 2))
    wanted = flows.unit_range(parts["vae"].decode(raw.mean + raw.std * noise).sample)
    found = flows.decoded(FAMILY, parts, "proj_out", latents)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_euler_steps_equal_the_pipelines_sampling(parts: Parts) -> None:
    pipeline = FAMILY.pipeline(parts)
    noise = flows.normal(2, 16, 4, 2)
    theirs = flows.sampled(pipeline, noise, guidance_scale=1)
    conditioning = flows.encoded(FAMILY, parts, flows.PROMPTS)
    ours = flows.euler_steps(FAMILY, parts, noise, conditioning, pipeline.scheduler.sigmas)
    torch.testing.assert_close(pipeline._pack_latents(ours), theirs, atol=1e-5, rtol=0)


def test_is_distilled_is_kept(parts: Parts, tmp_path: Path) -> None:
    distilled = FAMILY.load(tiny.build(tmp_path / "base", is_distilled=True))
    assert FAMILY.pipeline(distilled).config.is_distilled
    assert not FAMILY.pipeline(parts).config.is_distilled


def test_a_negative_prompt_is_refused() -> None:
    assert FAMILY.guidance(Sampler(guidance_scale=4)) == {"guidance_scale": 4}
    with pytest.raises(ConfigError, match=r"sampler\.negative_prompt"):
        FAMILY.guidance(Sampler(negative_prompt="blurry"))
