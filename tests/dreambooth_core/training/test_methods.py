"""Tests of every method of every family: train, export, load."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth_core import plugins
from dreambooth_core.config import INVERSIONS, Config
from dreambooth_core.diffusion import adapters, families, textual_inversion
from dreambooth_core.diffusion.families import Family, Parts, load_family
from dreambooth_core.training import module as training
from tests.conftest import build_tiny_base

NAMES = plugins.names(families.__name__)
CASES = [(name, method) for name in NAMES for method in families.methods(load_family(name))]
PROMPTS = ("a photo of sks dog", "a photo of a dog")
SIDE = 64


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, built = tmp_path_factory.mktemp("bases"), {}

    def base(family: Family) -> Path:
        name = family.pipeline_class
        if name not in built:
            built[name] = build_tiny_base(folder / name, name)
        return built[name]

    return base


def _config(name: str, method: str, base: Path) -> Config:
    return Config.model_validate(
        {
            "name": "test",
            "subject": {"images": "photos", "class_noun": "dog"},
            "model": {"family": name, "base": str(base), "resolution": SIDE},
            "prior": {"enabled": method != "textual_inversion"},
            "train": {"method": method, "steps": 2, "learning_rate": 1e-2},
            "adapter": {"rank": 2, "alpha": 2},
        }
    )


def _batch(latents: Tensor) -> dict[str, Any]:
    """One example of the subject, one of its class."""
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    return {
        "step": 0,
        "micro": 0,
        "latents": latents,
        "noise": noise,
        "times": torch.tensor([0.3, 0.8]),
        "is_class": torch.tensor([False, True]),
        "prompts": torch.tensor([0, 1]),
        "prompt_of": torch.tensor([0, 1]),
        "sizes": torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * 2).float(),
    }


def _spelled(config: Config) -> list[str]:
    tokens = textual_inversion.tokens_of(config) if config.train.method in INVERSIONS else {}
    return [textual_inversion.insert_tokens(tokens, prompt) for prompt in PROMPTS]


def _predict(config: Config, family: Family, parts: Parts, batch: dict[str, Any]) -> Tensor:
    """Prediction for the batch, with prompts encoded by the components themselves."""
    module = training.DreamBooth(family, parts, {}, config)
    module.set_prompts(family.tokenize(parts, _spelled(config)), encodes=True)
    with torch.no_grad():
        return module.predict(batch)


@pytest.mark.parametrize(("name", "method"), CASES, ids=str)
def test_trained_weights_survive_export_and_loading(
    name: str, method: str, bases: Any, tmp_path: Path
) -> None:
    family = load_family(name)
    base = bases(family)
    config = _config(name, method, base)
    parts = family.load(base)
    pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        batch = _batch(family.encode_images(parts, pixels).mean)
    before = _predict(config, family, parts, batch)
    trained = adapters.prepare(family, parts, config)
    module = training.DreamBooth(family, parts, trained, config)
    module.set_prompts(family.tokenize(parts, _spelled(config)), encodes=True)
    optimizer = module.configure_optimizers()
    for _ in range(2):  # an adapter's first factor has no gradient at the first step
        module.training_step(batch, 0).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = _predict(config, family, parts, batch)
    assert not torch.allclose(after, before, atol=1e-4)

    adapters.export(family, parts, config, base, tmp_path)
    tuned = {path.name: path for path in tmp_path.iterdir() if path.is_dir()}
    again = family.load(base, tuned)
    if not tuned:
        again = adapters.apply(family, again, tmp_path)
    torch.testing.assert_close(_predict(config, family, again, batch), after, rtol=1e-3, atol=1e-3)
