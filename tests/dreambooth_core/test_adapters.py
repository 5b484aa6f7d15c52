"""What is trained comes back, through diffusers' own loaders, as what was trained."""

from pathlib import Path

import pytest
import torch

from dreambooth_core import adapters
from dreambooth_core.config import Lora, Train
from dreambooth_core.families import Parts, load_family

FAMILY = load_family("stable_diffusion")
LORA = Lora(rank=4, alpha=8)


def _trained(base: Path, method: str, text_encoder: bool = True) -> tuple[Parts, Train]:
    """Parts whose trained weights were moved by hand."""
    train = Train.model_validate({"method": method, "text_encoder": text_encoder})
    parts = FAMILY.load(base, {})
    moving = adapters.prepare(FAMILY, parts, train, LORA, run_seed=1)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in moving.values():
            for weight in weights.values():
                weight += 0.05 * torch.randn(weight.shape, generator=draws)
    return parts, train


def _answer(parts: Parts) -> torch.Tensor:
    draws = torch.Generator().manual_seed(3)
    noisy = torch.randn(1, 4, 16, 16, generator=draws)
    conditioning = FAMILY.encode_prompts(parts, FAMILY.tokenize(parts, ["a photo of sks dog"]))
    with torch.no_grad():
        return FAMILY.predict(parts, noisy, torch.tensor([500]), conditioning)


@pytest.mark.parametrize("text_encoder", [True, False])
def test_full_weights_come_back(tiny_base: Path, tmp_path: Path, text_encoder: bool) -> None:
    parts, train = _trained(tiny_base, "full", text_encoder)
    before = _answer(parts)
    adapters.export(FAMILY, parts, train, tiny_base, tmp_path)
    names = {"unet", "text_encoder"} if text_encoder else {"unet"}
    assert {path.name for path in tmp_path.iterdir()} == names
    again = FAMILY.load(tiny_base, {name: tmp_path / name for name in names})
    assert torch.equal(_answer(again), before)
    assert not torch.equal(_answer(FAMILY.load(tiny_base, {})), before)


@pytest.mark.parametrize("text_encoder", [True, False])
def test_lora_comes_back_through_diffusers(
    tiny_base: Path, tmp_path: Path, text_encoder: bool
) -> None:
    parts, train = _trained(tiny_base, "lora", text_encoder)
    before = _answer(parts)
    adapters.export(FAMILY, parts, train, tiny_base, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [adapters.LORA_FILE]
    pipeline = FAMILY.pipeline(FAMILY.load(tiny_base, {}))
    untouched = _answer(Parts(pipeline.components))
    pipeline.load_lora_weights(tmp_path, weight_name=adapters.LORA_FILE)
    loaded = _answer(Parts(pipeline.components))
    torch.testing.assert_close(loaded, before, rtol=1e-4, atol=1e-4)
    assert (untouched - before).abs().max() > 1e-2


def test_the_same_adapter_is_the_same_file(tiny_base: Path, tmp_path: Path) -> None:
    parts, train = _trained(tiny_base, "lora")
    found = set()
    for index in range(8):  # the library writes its metadata in an order drawn by chance
        adapters.export(FAMILY, parts, train, tiny_base, tmp_path / str(index))
        found.add((tmp_path / str(index) / adapters.LORA_FILE).read_bytes())
    assert len(found) == 1


def test_a_fresh_adapter_changes_nothing_and_hangs_on_the_seed(tiny_base: Path) -> None:
    train = Train(method="lora")
    untouched = _answer(FAMILY.load(tiny_base, {}))
    drawn = []
    for seed in (1, 1, 2):
        parts = FAMILY.load(tiny_base, {})
        torch.manual_seed(len(drawn))  # must not matter
        moving = adapters.prepare(FAMILY, parts, train, LORA, seed)
        drawn.append(torch.cat([weight.flatten() for weight in moving["unet"].values()]))
        torch.testing.assert_close(_answer(parts), untouched)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_half_precision_bases_give_half_precision_weights(tiny_base: Path, tmp_path: Path) -> None:
    parts = FAMILY.load(tiny_base, {})
    for name in ("unet", "text_encoder"):
        parts[name].half().save_pretrained(tmp_path / "base" / name, safe_serialization=True)
    parts, train = _trained(tiny_base, "full")
    assert parts["unet"].dtype == torch.float32
    adapters.export(FAMILY, parts, train, tmp_path / "base", tmp_path / "out")
    for name in ("unet", "text_encoder"):
        assert adapters.stored_dtype(tmp_path / "out" / name) == torch.float16
