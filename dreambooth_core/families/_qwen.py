"""Prompts through a Qwen language model, for the families that read with one."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core.families import Tensors

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


def token_table(tokenizer: Any, texts: Sequence[str], length: int) -> Tensors:
    """`input_ids` and `attention_mask`, (texts, length): always of this length, so that a row
    does not tell which texts stand beside it."""
    tokens = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def hidden_states(
    model: Any, input_ids: "Tensor", attention_mask: "Tensor"
) -> tuple["Tensor", ...]:
    """(texts, tokens, width) before the first layer and after each; the last one normalised.

    `model` comes without its language head, whose logits over all words nobody looks at.
    """
    found = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        output_hidden_states=True,
        use_cache=False,
    )
    states: tuple[Tensor, ...] = found.hidden_states
    return states


def one_by_one(tokens: Tensors) -> Iterator[tuple["Tensor", "Tensor"]]:
    """`input_ids` and bool `attention_mask` of each text, (1, tokens) each.

    Texts that share a forward decide the last bits of one another.
    """
    ids, masks = tokens["input_ids"], tokens["attention_mask"].bool()
    return zip(ids.unsqueeze(1), masks.unsqueeze(1), strict=True)


def padded(rows: Sequence["Tensor"], length: int) -> Tensors:
    """Rows of (tokens, width) as `hidden_states` (rows, length, width) and bool `mask`
    (rows, length), zeros and False behind each row's end."""
    import torch
    from torch.nn.functional import pad

    states = torch.stack([pad(row, (0, 0, 0, length - len(row))) for row in rows])
    ends = torch.tensor([[len(row)] for row in rows], device=states.device)
    return {
        "hidden_states": states,
        "mask": torch.arange(length, device=states.device) < ends,
    }
