"""Qwen-Image compared with diffusers' pipeline."""

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


def test_the_system_prompt_is_the_pipelines_and_its_tokens_are_dropped(parts: Parts) -> None:
    pipeline = FAMILY.pipeline(parts)
    assert pipeline.prompt_template_encode == TEMPLATE
    assert pipeline.prompt_template_encode_start_idx == SYSTEM_TOKENS
    tokens = FAMILY.tokenize(parts, ["a cat"])
    kept = tokens["input_ids"][0, SYSTEM_TOKENS : int(tokens["attention_mask"].sum())]
    assert parts["tokenizer"].decode(kept) == "a cat<|im_end|>\n<|im_start|>assistant\n"


def test_prompts_are_encoded_as_single_prompts_by_the_pipeline(parts: Parts) -> None:
    found = flows.encoded(FAMILY, parts, flows.PROMPTS)
    for states, mask, prompt in zip(*found.values(), flows.PROMPTS, strict=True):
        theirs, no_mask = FAMILY.pipeline(parts).encode_prompt(prompt, device="cpu")
        assert no_mask is None
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
    row = {name: values[1:] for name, values in table.items()}
    alone = FAMILY.predict(parts, noisy[1:], timesteps[1:], row)
    torch.testing.assert_close(alone, plain[1:], atol=1e-5, rtol=0)


def test_sampled_latents_decode_as_the_autoencoders_own(parts: Parts) -> None:
    pipeline = FAMILY.pipeline(parts)
    raw = parts["vae"].encode(flows.photos()[:, :, None]).latent_dist
    noise = flows.normal(*raw.mean.shape)
    latents = FAMILY.encode_images(parts, flows.photos()).draw(noise[:, :, 0])
    wanted = flows.unit_range(parts["vae"].decode(raw.mean + raw.std * noise).sample[:, :, 0])
    packed = pipeline._pack_latents(latents, *latents.shape)
    found = flows.decoded(FAMILY, parts, "proj_out", packed)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_euler_steps_equal_the_pipelines_sampling(parts: Parts) -> None:
    pipeline = FAMILY.pipeline(parts)
    noise = flows.normal(2, 4, 8, 4)
    packed = pipeline._pack_latents(noise, *noise.shape)
    theirs = flows.sampled(pipeline, packed, true_cfg_scale=1)
    conditioning = flows.encoded(FAMILY, parts, flows.PROMPTS)
    ours = flows.euler_steps(FAMILY, parts, noise, conditioning, pipeline.scheduler.sigmas)
    torch.testing.assert_close(pipeline._pack_latents(ours, *ours.shape), theirs, atol=1e-5, rtol=0)


def test_guidance_is_classifier_free() -> None:
    assert FAMILY.guidance(Sampler(guidance_scale=4, negative_prompt="blurry")) == {
        "true_cfg_scale": 4,
        "negative_prompt": "blurry",
    }
