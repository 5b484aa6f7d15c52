"""CLIP tokenizer of the small world: byte-pair merges learned from its captions, complete for ASCII."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

MAX_TOKENS = 48
END = "</w>"


def learn_merges(texts: Iterable[str], share: float = 0.002) -> list[tuple[str, str]]:
    """Merges of byte-pair encoding (Sennrich et al. 2016), most frequent pair first.

    Words with fewer occurrences than `share` of the number of texts are left out, so that rare words
    stay several tokens.
    """
    texts = list(texts)
    counts = Counter(word for text in texts for word in text.lower().split())
    words = {word: n for word, n in counts.items() if n >= share * len(texts)}
    pieces = {word: (*word[:-1], word[-1] + END) for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in pieces.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        pieces = {word: _merge(parts, best) for word, parts in pieces.items()}


def _merge(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return tuple(merged)


def make_tokenizer(texts: Iterable[str]) -> Any:
    """A `CLIPTokenizer` whose vocabulary is the printable ASCII characters and the merges of `texts`."""
    from transformers import CLIPTokenizer

    merges = learn_merges(texts)
    characters = [chr(c) for c in range(33, 127)]
    tokens = characters + [c + END for c in characters] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocab, rules = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocab.write_text(json.dumps({token: i for i, token in enumerate(dict.fromkeys(tokens))}))
        rules.write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
        return CLIPTokenizer(str(vocab), str(rules), model_max_length=MAX_TOKENS)
