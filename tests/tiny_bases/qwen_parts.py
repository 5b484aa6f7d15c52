"""The tokenizer and the language model of the families that read their prompts with a Qwen."""

from typing import Any

FIXED_TEXT = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity,"
    " text, spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def tokenizer() -> Any:
    """A Qwen2Tokenizer: the words around the prompts are one token each, as in the real one.

    So Qwen-Image's system prompt has its 34 tokens; prompts are read byte by byte or so.
    """
    from transformers import Qwen2Tokenizer

    blank = Qwen2Tokenizer(extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    trained = blank.train_new_from_iterator([FIXED_TEXT], vocab_size=1000)
    trained.chat_template = CHAT
    return trained


def sizes(words: Any, layers: int) -> dict[str, Any]:
    """What the configs of tiny Qwen language models share."""
    return {
        "vocab_size": len(words),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
