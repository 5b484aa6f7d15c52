"""Prompt encoding with a Qwen language model, for the families that have one."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import Tensors

if TYPE_CHECKING:
    from torch import Tensor


def chats(tokenizer: Any, prompts: Sequence[str], thinking: bool) -> list[str]:
    """Each prompt as a user message in the chat template, up to the start of the reply."""
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=thinking,
        )
        for prompt in prompts
    ]


def one_by_one(tokens: Tensors) -> Iterator[tuple["Tensor", "Tensor"]]:
    """`input_ids` and bool `attention_mask` of each text, (1, tokens) each.

    In one forward, the last bits of a text's states would depend on the other texts.
    """
    ids, masks = tokens["input_ids"], tokens["attention_mask"].bool()
    return zip(ids.unsqueeze(1), masks.unsqueeze(1), strict=True)


def hidden_states(
    model: Any, input_ids: "Tensor", mask: "Tensor | None" = None
) -> tuple["Tensor", ...]:
    """(1, tokens, width) before the first layer and after each; the last one normalised.

    Causal attention without padding tokens. `model` has no language head: no logits are computed.
    """
    import torch

    attention = None
    if mask is not None:
        # a 4-d mask: for a 2-d one the library reads its values, which meta tensors lack
        length = mask.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
        attention = causal & mask[:, None, None, :]
    found = model(
        input_ids=input_ids, attention_mask=attention, output_hidden_states=True, use_cache=False
    )
    states: tuple[Tensor, ...] = found.hidden_states
    return states


def lengths(mask: "Tensor") -> list[int]:
    """Number of True values in each row of (rows, tokens).

    The number of tokens for meta and fake tensors, which have no values: the upper bound.
    """
    from torch._subclasses import FakeTensor

    if mask.is_meta or isinstance(mask, FakeTensor):
        return [mask.shape[1]] * len(mask)
    counted: list[int] = mask.bool().sum(1).tolist()
    return counted
