"""Tokenizers for the tiny bases: one token per character or byte, made from nothing."""

import json
from pathlib import Path
from typing import Any


def byte_letters() -> list[str]:
    """The 256 characters that byte-level BPE writes bytes with, those of readable bytes first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [chr(256 + place) for place in range(256 - len(printable))]
    return [chr(code) for code in printable] + others


def clip(folder: Path, length: int = 24, pad: str = "<|endoftext|>") -> Any:
    """A CLIPTokenizer of 514 tokens, whose files are in `folder`."""
    from transformers import CLIPTokenizer

    ends = [letter + "</w>" for letter in byte_letters()]
    words = [*byte_letters(), *ends, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def t5(length: int = 24) -> Any:
    """A T5Tokenizer of the ASCII characters; others are unknown to it."""
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", "▁", *map(chr, range(33, 127))]
    vocabulary = [(piece, float(-place)) for place, piece in enumerate(pieces)]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=length)


def gemma(length: int = 24) -> Any:
    """A GemmaTokenizer of the 256 bytes, each written as <0x..>."""
    from transformers import GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = {word: place for place, word in enumerate(words)}
    return GemmaTokenizer(vocab=vocabulary, model_max_length=length)


def qwen2(length: int = 512) -> Any:
    """A Qwen2Tokenizer of the 256 bytes and the marks of its chats."""
    from transformers import Qwen2Tokenizer

    words = [*byte_letters(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], model_max_length=length)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer
