"""Tests of text embeddings: each prompt is encoded once, and a full cache loads no encoder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreambooth_core.diffusion.families import load_family
from dreambooth_core.storage.tensor_cache import TensorCache
from dreambooth_core.training.text_embeddings import TextEncoder, text_embeddings

FAMILY = load_family("stable_diffusion")
PROMPTS = ("a photo of sks robot", "a photo of a robot", "")


class RecordingEncoder:
    """The text encoder of a base, which records loads and encoded prompts."""

    def __init__(self, base: Path) -> None:
        self.base, self.loads = base, 0
        self.encoded: list[str] = []

    def load(self) -> Any:
        self.loads += 1
        parts = FAMILY.load(self.base)

        def encode(prompt: str) -> Mapping[str, Tensor]:
            self.encoded.append(prompt)
            return FAMILY.encode_prompts(parts, FAMILY.tokenize(parts, [prompt]))

        return encode


@pytest.fixture
def texts(tiny_base: Path) -> RecordingEncoder:
    return RecordingEncoder(tiny_base)


def test_rows_are_the_prompts_in_order(
    texts: RecordingEncoder, tiny_base: Path, tmp_path: Path
) -> None:
    encoder = TextEncoder("digest", "float32", texts.load)
    found = text_embeddings(PROMPTS, TensorCache("embeddings", tmp_path), encoder)
    assert (found.made, found.found, texts.loads) == (3, 0, 1)
    parts = FAMILY.load(tiny_base)
    wanted = FAMILY.encode_prompts(parts, FAMILY.tokenize(parts, PROMPTS))
    assert found.rows.keys() == wanted.keys()
    for name, rows in found.rows.items():
        torch.testing.assert_close(rows, wanted[name])
        assert not rows.requires_grad


def test_only_new_prompts_are_encoded(texts: RecordingEncoder, tmp_path: Path) -> None:
    cache, encoder = (
        TensorCache("embeddings", tmp_path),
        TextEncoder("digest", "float32", texts.load),
    )
    first = text_embeddings(PROMPTS, cache, encoder)
    again = text_embeddings(PROMPTS[::-1], cache, encoder)
    assert (again.made, again.found, texts.loads) == (0, 3, 1)
    for name, rows in first.rows.items():
        assert torch.equal(rows.flip(0), again.rows[name])
    more = text_embeddings((*PROMPTS, "sks robot on the beach"), cache, encoder)
    assert (more.made, more.found) == (1, 3)
    assert texts.encoded[3:] == ["sks robot on the beach"]
    assert text_embeddings(PROMPTS, cache, encoder._replace(digest="other")).made == 3
    assert text_embeddings(PROMPTS, cache, encoder._replace(dtype="bfloat16")).made == 3
