"""Conditioning of prompts by frozen text encoders: encoded once, and cached."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dreambooth_core.storage.tensor_cache import Entry, TensorCache, key_of


class TextEncoder(NamedTuple):
    """The frozen text encoders and tokenizers, loaded only if a prompt is not cached."""

    digest: str
    """SHA-256 of the components' files."""
    dtype: str
    """Name of their number type."""
    load: Callable[[], Callable[[str], Mapping[str, Tensor]]]
    """Returns a function that encodes one prompt: named tensors with a first axis of 1."""


class TextEmbeddings(NamedTuple):
    """The denoiser's conditioning, one row per prompt, on the CPU."""

    rows: Mapping[str, Tensor]
    made: int
    """Prompts that were encoded now."""
    found: int
    """Prompts that came from the cache."""


def text_embeddings(
    prompts: Sequence[str], cache: TensorCache, encoder: TextEncoder
) -> TextEmbeddings:
    """The conditioning of `prompts`; only missing ones are computed.

    One forward per prompt, so that its bits do not depend on the other prompts; a family pads all
    prompts to one length.
    """
    keys = [
        key_of(prompt=prompt, encoder=encoder.digest, dtype=encoder.dtype) for prompt in prompts
    ]

    def compute(missing: list[int]) -> Iterator[Entry]:
        encode = encoder.load()
        for index in missing:
            with torch.no_grad():
                yield {name: value[0] for name, value in encode(prompts[index]).items()}

    fetched = cache.fetch(keys, compute)
    names = fetched.entries[0]
    rows = {name: torch.stack([entry[name] for entry in fetched.entries]) for name in names}
    return TextEmbeddings(rows, fetched.made, fetched.found)
