"""Qwen-Image beside its own pipeline."""

from collections.abc import Iterator

import pytest
import torch

from dreambooth_core.config import Sampler
from dreambooth_core.diffusion.families import Parts
from dreambooth_core.diffusion.families.qwen_image import FAMILY, SYSTEM_TOKENS, TEMPLATE
from tests.dreambooth_core.diffusion.families import flows
from tests.tiny_bases import QwenImagePipeline as tiny


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return FAMILY.load(tiny.build(tmp_path_factory.mktemp("qwen_image") / "base"))


def test_the_system_prompt_is_the_pipelines_and_is_dropped_to_its_last_token(parts: Parts) -> None:
    pipeline = FAMILY.pipeline(parts)
    assert pipeline.prompt_template_encode == TEMPLATE
    assert pipeline.prompt_template_encode_start_idx == SYSTEM_TOKENS
    tokens = FAMILY.tokenize(parts, ["a cat"])
    kept = tokens["input_ids"][0, SYSTEM_TOKENS : int(tokens["attention_mask"].sum())]
    assert parts["tokenizer"].decode(kept) == "a cat<|im_end|>\n<|im_start|>assistant\n"


def test_each_prompt_is_encoded_as_by_the_pipeline_alone(parts: Parts) -> None:
    found = flows.encoded(FAMILY, parts, flows.PROMPTS)
    for states, mask, prompt in zip(*found.values(), flows.PROMPTS, strict=True):
        theirs, no_mask = FAMILY.pipeline(parts).encode_prompt(prompt, device="cpu")
        assert no_mask is None
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
    row = {name: values[1:] for name, values in table.items()}
    alone = FAMILY.predict(parts, noisy[1:], timesteps[1:], row)
    torch.testing.assert_close(alone, plain[1:], atol=1e-5, rtol=0)


def test_drawn_latents_decode_to_what_the_autoencoder_itself_drew(parts: Parts) -> None:
    pipeline = FAMILY.pipeline(parts)
    own = parts["vae"].encode(flows.photos()[:, :, None]).latent_dist
    noise = flows.normal(*own.mean.shape)
    latents = FAMILY.encode_images(parts, flows.photos()).draw(noise[:, :, 0])
    wanted = flows.shown(parts["vae"].decode(own.mean + own.std * noise).sample[:, :, 0])
    packed = pipeline._pack_latents(latents, *latents.shape)
    found = flows.decoded(FAMILY, parts, "proj_out", packed)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_walking_along_the_predictions_is_sampling(parts: Parts) -> None:
    pipeline = FAMILY.pipeline(parts)
    noise = flows.normal(2, 4, 8, 4)
    packed = pipeline._pack_latents(noise, *noise.shape)
    theirs = flows.sampled(pipeline, packed, true_cfg_scale=1)
    conditioning = flows.encoded(FAMILY, parts, flows.PROMPTS)
    ours = flows.walked(FAMILY, parts, noise, conditioning, pipeline.scheduler.sigmas)
    torch.testing.assert_close(pipeline._pack_latents(ours, *ours.shape), theirs, atol=1e-5, rtol=0)


def test_guidance_is_the_true_one() -> None:
    assert FAMILY.guidance(Sampler(guidance_scale=4, negative_prompt="blurry")) == {
        "true_cfg_scale": 4,
        "negative_prompt": "blurry",
    }
