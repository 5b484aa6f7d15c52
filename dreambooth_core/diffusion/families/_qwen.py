"""Prompts through a Qwen language model, for the families that read with one."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import Tensors

if TYPE_CHECKING:
    from torch import Tensor


def chats(tokenizer: Any, prompts: Sequence[str], thinking: bool) -> list[str]:
    """Each prompt as what a user says to the model, up to where its answer would begin."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        for prompt in prompts
    ]


def token_table(
    tokenizer: Any, texts: Sequence[str], length: int, padding_side: str | None = "right"
) -> Tensors:
    """`input_ids` and `attention_mask`, (texts, length): always of this length, so that a row
    does not tell which texts stand beside it. None pads on the tokenizer's own side."""
    tokens = tokenizer(
        list(texts),
        padding="max_length",
        padding_side=padding_side,
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def one_by_one(tokens: Tensors) -> Iterator[tuple["Tensor", "Tensor"]]:
    """`input_ids` and bool `attention_mask` of each text, (1, tokens) each.

    Texts that share a forward decide the last bits of one another.
    """
    ids, masks = tokens["input_ids"], tokens["attention_mask"].bool()
    return zip(ids.unsqueeze(1), masks.unsqueeze(1), strict=True)


def hidden_states(
    model: Any, input_ids: "Tensor", mask: "Tensor | None" = None
) -> tuple["Tensor", ...]:
    """(1, tokens, width) before the first layer and after each; the last one normalised.

    Every token sees those ahead of it that are not padding. `model` comes without its language
    head, whose logits over all words nobody looks at.
    """
    import torch

    sees = None
    if mask is not None:
        # spelled out, for the library would look into the mask to choose a shorter way
        length = mask.shape[1]
        ahead = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        sees = ahead & mask[:, None, None, :]
    found = model(
        input_ids=input_ids, attention_mask=sees, output_hidden_states=True, use_cache=False
    )
    states: tuple[Tensor, ...] = found.hidden_states
    return states


def lengths(mask: "Tensor") -> list[int]:
    """How many are True in each row of (rows, tokens).

    All of them where there is nothing to count, as in a rehearsal of shapes alone: no prompt is
    longer.
    """
    from torch._subclasses import FakeTensor

    if mask.is_meta or isinstance(mask, FakeTensor):
        return [mask.shape[1]] * len(mask)
    counted: list[int] = mask.bool().sum(1).tolist()
    return counted
