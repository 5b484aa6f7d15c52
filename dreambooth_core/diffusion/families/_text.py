"""Tokenization and CLIP encoding that several families share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import Tensors

if TYPE_CHECKING:
    from torch import Tensor


def token_ids(tokenizer: Any, prompts: Sequence[str], length: int) -> "Tensor":
    """(prompts, length) int64: padded, or truncated."""
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    ids: Tensor = tokens["input_ids"]
    return ids


def token_table(
    tokenizer: Any, texts: Sequence[str], length: int, padding_side: str | None = "right"
) -> Tensors:
    """`input_ids` and `attention_mask`, (texts, length); None pads on the tokenizer's own side.

    The length is fixed, so that a row does not depend on the other texts.
    """
    tokens = tokenizer(
        list(texts),
        padding="max_length",
        padding_side=padding_side,
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def penultimate_and_pooled(encoder: Any, ids: "Tensor") -> tuple["Tensor", "Tensor"]:
    """Hidden states before a CLIP's last layer, (prompts, tokens, width), and `text_embeds`."""
    found = encoder(ids, output_hidden_states=True)
    return found.hidden_states[-2], found.text_embeds
