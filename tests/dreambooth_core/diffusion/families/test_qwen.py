"""Families with a Qwen text encoder, on tensors without data."""

import importlib
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from dreambooth_core.diffusion.families import _qwen, load_family
from tests.dreambooth_core.diffusion.families import flows


def test_lengths_of_masks_with_and_without_data() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert _qwen.lengths(mask) == [2, 1]
    assert _qwen.lengths(mask.to("meta")) == [3, 3]
    with FakeTensorMode() as fake:
        assert _qwen.lengths(fake.from_tensor(mask)) == [3, 3]


@pytest.mark.parametrize("name", ["flux2", "qwen_image", "z_image"])
def test_encoded_prompts_have_the_same_shape_without_data(name: str, tmp_path: Path) -> None:
    """The memory plan needs only configs."""
    family = load_family(name)
    builder = importlib.import_module(f"tests.tiny_bases.{family.pipeline_class}")
    base = builder.build(tmp_path / "base")
    real = family.load(base)
    with torch.device("meta"):
        shapes = family.load(base)
    tokens = family.tokenize(real, flows.PROMPTS)
    with torch.no_grad():
        wanted = family.encode_prompts(real, tokens)
        found = family.encode_prompts(
            shapes, {name: ids.to("meta") for name, ids in tokens.items()}
        )
    assert {key: (value.shape, value.dtype) for key, value in found.items()} == {
        key: (value.shape, value.dtype) for key, value in wanted.items()
    }
