"""Contract of all families, including a copied one: loading and training."""

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from dreambooth_core import plugins
from dreambooth_core.config.training import Loss
from dreambooth_core.diffusion import families
from dreambooth_core.diffusion.families import Family, Parts, Tensors, load_family
from dreambooth_core.diffusion.objectives import add_noise, example_losses, target
from dreambooth_core.errors import ConfigError
from tests.dreambooth_core.diffusion.families.cases import (
    CASES,
    COPY,
    NAMES,
    ORIGINAL,
    PROMPTS,
    Case,
    pixels,
    sizes,
)

ROOT = Path(__file__).parents[4]


def test_parts_are_frozen_and_float32_unless_asked(case: Case, family: Family) -> None:
    names = (family.denoiser, family.autoencoder, *family.text_encoders)
    for dtype in (None, torch.bfloat16):
        parts = case.load(dtype=dtype)
        for name in names:
            weights = list(parts[name].parameters())
            assert {weight.dtype for weight in weights} == {dtype or torch.float32}
            assert not any(weight.requires_grad for weight in weights)
            assert not parts[name].training


def test_omitted_parts_are_not_loaded(case: Case, family: Family) -> None:
    parts = case.load(tuned={family.denoiser: None})
    assert family.denoiser not in parts.components
    tokens = family.tokenize(parts, PROMPTS)
    assert family.encode_prompts(parts, tokens)
    assert family.objective(parts)


def test_attributes_match_the_parts(family: Family, frozen: Parts) -> None:
    assert set(family.tokenizers) <= set(family.text_encoders)
    assert set(family.lora_targets) == {family.denoiser, *family.tokenizers}
    for encoder, tokenizer in family.tokenizers.items():
        words = frozen[encoder].get_input_embeddings().weight.shape[0]
        assert len(frozen[tokenizer]) == words
    for component, suffixes in family.lora_targets.items():
        layers = [
            name for name, m in frozen[component].named_modules() if isinstance(m, torch.nn.Linear)
        ]
        assert all(any(name.endswith(f".{suffix}") for name in layers) for suffix in suffixes)


def test_latents_follow_the_pixels(family: Family, frozen: Parts) -> None:
    images = pixels(family)
    with torch.no_grad():
        found = family.encode_images(frozen, images)
        again = family.encode_images(frozen, images.flip(0))
    assert found.mean.shape == found.log_variance.shape
    assert len(found.mean) == 2
    height, width = found.mean.shape[-2:]
    assert width == 2 * height
    assert images.shape[-2] % height == 0
    assert_close(again.mean, found.mean.flip(0))
    assert found.draw(torch.randn(found.mean.shape)).isfinite().all()


class Batch(NamedTuple):
    tokens: dict[str, Tensor]
    sizes: Tensor
    latents: Tensor
    noise: Tensor
    times: Tensor

    def rows(self, *indices: int) -> "Batch":
        index = list(indices)
        tokens = {name: value[index] for name, value in self.tokens.items()}
        return Batch(tokens, *(value[index] for value in self[1:]))


def _batch(family: Family, parts: Parts) -> Batch:
    draw = torch.Generator().manual_seed(1)
    images = pixels(family)
    with torch.no_grad():
        found = family.encode_images(parts, images)
    latents = found.draw(torch.randn(found.mean.shape, generator=draw))
    noise = torch.randn(latents.shape, generator=draw)
    tokens = dict(family.tokenize(parts, PROMPTS))
    return Batch(tokens, sizes(images), latents, noise, torch.tensor([0.2, 0.7]))


def _losses(family: Family, parts: Parts, batch: Batch, encoded: Tensors | None = None) -> Tensor:
    objective = family.objective(parts)
    encoded = encoded or family.encode_prompts(parts, batch.tokens)
    noisy = add_noise(objective, batch.latents, batch.noise, batch.times)
    timesteps = objective.timesteps_of(batch.times)
    prediction = family.predict(parts, noisy, timesteps, {**encoded, "sizes": batch.sizes})
    wanted = target(objective, batch.latents, batch.noise, batch.times)
    return example_losses(Loss(), objective, prediction, wanted, batch.times)


def test_an_examples_loss_does_not_depend_on_the_others(family: Family, frozen: Parts) -> None:
    batch = _batch(family, frozen)
    with torch.no_grad():
        together = _losses(family, frozen, batch)
        alone = torch.cat([_losses(family, frozen, batch.rows(row)) for row in range(2)])
    assert together.shape == (2,)
    assert together.isfinite().all()
    assert together[0] != together[1]
    assert_close(together, alone)


def _with_gradients(parts: Parts) -> dict[str, set[str]]:
    """Component -> names of its weights with a nonzero gradient."""
    models = {n: p for n, p in parts.components.items() if isinstance(p, torch.nn.Module)}
    found = {
        name: {n for n, w in model.named_parameters() if w.grad is not None and w.grad.any()}
        for name, model in models.items()
    }
    return {name: weights for name, weights in found.items() if weights}


def test_only_trainable_components_get_gradients(case: Case, family: Family) -> None:
    for component in (family.denoiser, *family.tokenizers):
        parts = case.load()
        parts[component].requires_grad_(True)
        _losses(family, parts, _batch(family, parts)).sum().backward()
        assert _with_gradients(parts).keys() == {component}


def test_only_adapters_get_gradients(case: Case, family: Family) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    parts = case.load()
    for component, suffixes in family.lora_targets.items():
        settings = LoraConfig(r=2, target_modules=list(suffixes), init_lora_weights=False)
        inject_adapter_in_model(settings, parts[component])
    _losses(family, parts, _batch(family, parts)).sum().backward()
    found = _with_gradients(parts)
    assert found.keys() == family.lora_targets.keys()
    assert all("lora_" in name for weights in found.values() for name in weights)


def test_a_few_steps_lower_the_loss(case: Case, family: Family) -> None:
    parts = case.load()
    batch = _batch(family, parts)
    encoded = family.encode_prompts(parts, batch.tokens)
    denoiser = parts[family.denoiser].requires_grad_(True)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-3)
    losses = []
    for _ in range(8):
        loss = _losses(family, parts, batch, encoded).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]


def test_unknown_family() -> None:
    with pytest.raises(ConfigError, match=NAMES[0]):
        load_family("nonsense")


def test_attributes_do_not_import_the_model_libraries() -> None:
    script = f"""
import sys
from dreambooth_core.diffusion.families import load_family
for name in {NAMES!r}:
    load_family(name).lora_targets
print(sorted({{"torch", "diffusers", "transformers", "peft"}} & sys.modules.keys()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_a_copied_file_is_found(copied: Path) -> None:
    """The copy is also a case of all other tests of this module."""
    assert plugins.names(families.__name__) == sorted([*NAMES, COPY])
    assert COPY in {name for name, _ in CASES}
    assert type(load_family(COPY)) is not type(load_family(ORIGINAL))
