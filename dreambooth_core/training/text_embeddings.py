"""Prompts as frozen text encoders see them: encoded once, and kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dreambooth_core.storage.tensor_cache import Entry, TensorCache, key_of


class TextEncoder(NamedTuple):
    """The frozen text encoders with their tokenizers, loaded only when something is missing."""

    digest: str
    """Of the components' files."""
    dtype: str
    """Their numbers' type, as a word."""
    load: Callable[[], Callable[[str], Mapping[str, Tensor]]]
    """Gives what encodes one prompt: named tensors with a first axis of 1."""


class TextEmbeddings(NamedTuple):
    """The denoiser's conditioning, a row per prompt, on the CPU."""

    rows: Mapping[str, Tensor]
    made: int
    found: int


def text_embeddings(
    prompts: Sequence[str], cache: TensorCache, encoder: TextEncoder
) -> TextEmbeddings:
    """The embeddings of `prompts`, of which only missing ones are computed.

    One forward per prompt, so that its bits do not hang on the others in the table; a family pads
    all prompts to one length.
    """
    keys = [
        key_of(prompt=prompt, encoder=encoder.digest, dtype=encoder.dtype) for prompt in prompts
    ]

    def compute(missing: list[int]) -> Iterator[Entry]:
        encode = encoder.load()
        for place in missing:
            with torch.no_grad():
                yield {name: value[0] for name, value in encode(prompts[place]).items()}

    fetched = cache.fetch(keys, compute)
    names = fetched.entries[0]
    rows = {name: torch.stack([entry[name] for entry in fetched.entries]) for name in names}
    return TextEmbeddings(rows, fetched.made, fetched.found)
