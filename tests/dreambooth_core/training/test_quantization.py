"""Tests of the denoiser in 8 and 4 bits: bytes, error, and training of an adapter.

Two fifths of the tiny denoiser are linear layers.
"""

import sys
from pathlib import Path

import pytest
import torch

from dreambooth_core.config import Config
from dreambooth_core.diffusion import adapters
from dreambooth_core.diffusion.families import Parts, load_family
from dreambooth_core.errors import ConfigError
from dreambooth_core.training import quantization
from dreambooth_core.training.quantization import Kind

FAMILY = load_family("stable_diffusion")
KINDS: tuple[Kind, ...] = ("int8", "nf4")


def _config(method: str = "lora") -> Config:
    return Config.model_validate(
        {
            "name": "tiny",
            "subject": {"images": "photos", "class_noun": "dog"},
            "train": {"method": method, "text_encoder": False},
            "adapter": {"rank": 4, "alpha": 8},
        }
    )


def _linear_bytes(parts: Parts) -> int:
    layers = [layer for layer in parts["unet"].modules() if isinstance(layer, torch.nn.Linear)]
    return sum(layer.weight.nbytes for layer in layers)


def _predict(parts: Parts) -> torch.Tensor:
    numbers = parts["unet"].conv_in.weight.dtype
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3)).to(numbers)
    conditioning = FAMILY.encode_prompts(parts, FAMILY.tokenize(parts, ["a photo of sks dog"]))
    return FAMILY.predict(parts, noisy, torch.tensor([500]), conditioning)


@pytest.mark.parametrize(("kind", "share", "error"), [("int8", 1 / 4, 0.01), ("nf4", 1 / 8, 0.1)])
def test_quantization_saves_bytes_at_a_small_error(
    tiny_base: Path, kind: Kind, share: float, error: float
) -> None:
    parts = FAMILY.load(tiny_base)
    before, of_linear = quantization.bytes_of(parts["unet"]), _linear_bytes(parts)
    with torch.no_grad():
        exact = _predict(parts)
        rounded = _predict(quantization.quantize(parts, FAMILY, kind))
    after = quantization.bytes_of(parts["unet"])
    left = (of_linear - (before - after)) / of_linear
    assert share <= left < share + 0.1  # the rest are scales, a large share of small layers
    assert 0 < (rounded - exact).norm() / exact.norm() < error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("numbers", [torch.float32, torch.bfloat16])
def test_an_adapter_trains_on_quantized_weights(
    tiny_base: Path, kind: Kind, method: str, numbers: torch.dtype
) -> None:
    parts = quantization.quantize(FAMILY.load(tiny_base, None, numbers), FAMILY, kind)
    parts["unet"].to(memory_format=torch.channels_last)
    with torch.no_grad():
        base = _predict(parts)
    trained = adapters.prepare(FAMILY, parts, _config(method))
    weights = list(trained["unet"].values())
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    targets = torch.ones_like(base)
    losses = []
    for _ in range(4):
        loss = (_predict(parts) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.98 * losses[0]
    with torch.no_grad(), adapters.disabled(FAMILY, parts):
        assert torch.equal(_predict(parts), base)


@pytest.mark.parametrize("kind", KINDS)
def test_its_adapter_is_applied_to_the_original_weights(
    tiny_base: Path, tmp_path: Path, kind: Kind
) -> None:
    parts = quantization.quantize(FAMILY.load(tiny_base), FAMILY, kind)
    trained = adapters.prepare(FAMILY, parts, _config())
    plain = FAMILY.load(tiny_base)
    twins = adapters.prepare(FAMILY, plain, _config())
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in trained["unet"].items():
            weight += 0.05 * torch.randn(weight.shape, generator=draws)
            twins["unet"][name].copy_(weight)
        targets = _predict(plain)
        adapters.export(FAMILY, parts, _config(), tiny_base, tmp_path)
        applied = _predict(adapters.apply(FAMILY, FAMILY.load(tiny_base), tmp_path))
    torch.testing.assert_close(applied, targets, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "library"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_missing_library_is_named(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind, library: str
) -> None:
    monkeypatch.setitem(sys.modules, f"{library}.quantization", None)
    monkeypatch.setitem(sys.modules, f"{library}.nn", None)
    with pytest.raises(ConfigError, match=f"model.quantize {kind} needs {library}"):
        quantization.quantize(FAMILY.load(tiny_base), FAMILY, kind)


def test_an_unsupported_number_type_is_refused(tiny_base: Path) -> None:
    parts = FAMILY.load(tiny_base, None, torch.float64)
    with pytest.raises(ConfigError, match=r"nf4 does not work for torch.float64 on cpu"):
        quantization.quantize(parts, FAMILY, "nf4")
