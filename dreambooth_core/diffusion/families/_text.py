"""Prompts as the text encoders of several families read them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def token_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> "Tensor":
    """(prompts, length) int64: filled up with padding, or cut off."""
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    ids: Tensor = tokens["input_ids"]
    return ids


def penultimate_and_pooled(encoder: Any, ids: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Hidden states before a CLIP's last layer, (prompts, tokens, width), and its projection."""
    found = encoder(ids, output_hidden_states=True)
    return found.hidden_states[-2], found.text_embeds
