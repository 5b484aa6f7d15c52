"""New tokens that come to mean the subject: textual inversion (Gal et al. 2022, arXiv:2208.01618).

A prompt still says the identifier; `insert_tokens` puts the new tokens in its place, in training and in
sampling alike. Only the new tokens' embeddings can move: the table of the old ones is not in reach
of gradients, optimizer or weight decay.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dreambooth_core.config import Config
from dreambooth_core.diffusion import safetensors_files
from dreambooth_core.diffusion.families import Family, Parts
from dreambooth_core.errors import ConfigError, ModelError

FILE = "learned_embeds.safetensors"

Tokens = Mapping[str, tuple[str, ...]]
"""Identifier -> the tokens that are written in its place."""


class ExtendedEmbedding(nn.Module):
    """A frozen table of embeddings and new rows, which have the token ids from `first` on."""

    def __init__(self, table: nn.Embedding, rows: Tensor, first: int) -> None:
        super().__init__()
        self.table = table.requires_grad_(False)
        self.new_tokens = nn.Parameter(rows.detach().clone().float())
        self.first = first

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids (...): (..., width), in the table's number type."""
        is_new = (ids >= self.first) & (ids < self.first + len(self.new_tokens))
        old: Tensor = self.table(ids.masked_fill(is_new, 0))
        new = functional.embedding((ids - self.first).where(is_new, 0), self.new_tokens)
        return torch.where(is_new[..., None], new.to(old.dtype), old)


def is_new_token(parameter: str) -> bool:
    """Whether the name of a parameter that moves is that of new tokens' embeddings."""
    return parameter.endswith(".new_tokens")


def tokens_of(config: Config) -> Tokens:
    """The new tokens of each subject's identifier: `sks` -> `<sks-0>`, `<sks-1>` ..."""
    words = [subject.identifier for subject in config.subjects]
    places = range(config.textual_inversion.num_vectors)
    return {word: tuple(f"<{word.strip('<>')}-{place}>" for place in places) for word in words}


def insert_tokens(tokens: Tokens, prompt: str) -> str:
    """The prompt with each identifier, where it is a word of its own, written as its tokens.

    What is spelled already stays as it is. Without tokens the prompt is returned unchanged.
    """
    if not tokens:
        return prompt
    words = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    alone = rf"(?<!\w)(?:{words})(?!\w|-\d+>)"
    return re.sub(alone, lambda found: "".join(tokens[found[0]]), prompt)


def prepare(family: Family, parts: Parts, config: Config) -> dict[str, dict[str, nn.Parameter]]:
    """Add the tokens to the tokenizers and rows for them to the text encoders, in place.

    Each subject's rows start from the mean embedding of its initializer word. Returns what moves:
    text encoder -> parameter name -> rows, (tokens, width) float32. Raises `ConfigError` for a
    tokenizer that has such tokens, or that cannot read the initializer word.
    """
    tokens = tokens_of(config)
    starts = [
        config.textual_inversion.initializer_token or subject.class_noun
        for subject in config.subjects
    ]
    rows = {
        name: torch.cat(
            [_start(parts, name, tokenizer, word) for word in starts]
        ).repeat_interleave(config.textual_inversion.num_vectors, dim=0)
        for name, tokenizer in family.tokenizers.items()
    }
    first = _add_tokens(family, parts, tokens)
    trained = {}
    for name, of_encoder in rows.items():
        encoder = parts[name]
        table = encoder.get_input_embeddings()
        extended = ExtendedEmbedding(table, of_encoder, first[family.tokenizers[name]])
        encoder.set_input_embeddings(extended.to(table.weight.device))
        trained[name] = {
            key: weight for key, weight in encoder.named_parameters() if is_new_token(key)
        }
    return trained


def export(family: Family, parts: Parts, config: Config, folder: Path) -> None:
    """Write the new embeddings to `FILE`: one tensor per text encoder, and the tokens' names."""
    rows = {name: parts[name].get_input_embeddings().new_tokens for name in family.tokenizers}
    texts = {"tokens": json.dumps(tokens_of(config))}
    safetensors_files.write(folder / FILE, rows, texts)


def exported_tokens(folder: Path) -> Tokens:
    """The tokens that weights in a folder bring, for `insert_tokens`; none where nothing was inverted."""
    if not (folder / FILE).is_file():
        return {}
    return _names(folder, safetensors_files.read(folder / FILE)[1])


def apply(family: Family, parts: Parts, folder: Path) -> None:
    """Give freshly loaded parts the exported tokens, as plain rows of their embedding tables.

    Raises `ModelError` when the file is of another family.
    """
    rows, texts = safetensors_files.read(folder / FILE)
    if rows.keys() != family.tokenizers.keys():
        raise ModelError(
            f"{folder / FILE} has embeddings for {', '.join(rows)}, but the base reads prompts "
            f"with {', '.join(family.tokenizers) or 'no encoder that learns'}; use its own base"
        )
    tokens = _names(folder, texts)
    first = _add_tokens(family, parts, tokens)
    for name, new in rows.items():
        if len(new) != sum(map(len, tokens.values())):
            raise ModelError(
                f"{folder / FILE} has {len(new)} embeddings for {name}, not one for each of its "
                "tokens; export the weights again"
            )
        encoder = parts[name]
        table = encoder.get_input_embeddings()
        encoder.set_input_embeddings(_with_rows(table, new, first[family.tokenizers[name]]))


def _with_rows(table: nn.Embedding, new: Tensor, first: int) -> nn.Embedding:
    """A table with the new rows from `first` on; some encoders have spare rows there already."""
    old = table.weight.detach()
    if new.shape[1] != old.shape[1]:
        raise ModelError(
            f"the new tokens are {new.shape[1]} numbers wide, but the base's embeddings "
            f"{old.shape[1]}; use the base that they were trained on"
        )
    whole = old.new_zeros(max(len(old), first + len(new)), old.shape[1])
    whole[: len(old)] = old
    whole[first : first + len(new)] = new.to(old)
    rows, width = whole.shape
    grown = nn.Embedding(rows, width, padding_idx=table.padding_idx, _weight=whole)
    return grown.requires_grad_(False)


def _add_tokens(family: Family, parts: Parts, tokens: Tokens) -> dict[str, int]:
    """Tokenizer -> id of the first of the new tokens, which follow each other."""
    from tokenizers import AddedToken

    names = [name for of_word in tokens.values() for name in of_word]
    added = [AddedToken(name, normalized=False) for name in names]
    first = {}
    for part in dict.fromkeys(family.tokenizers.values()):
        tokenizer: Any = parts[part]
        if not tokenizer.get_vocab().keys().isdisjoint(names):
            raise ConfigError(
                f"the base's {part} has tokens like {names[0]} already: "
                "choose another subject.identifier"
            )
        tokenizer.add_tokens(added)
        first[part] = tokenizer.convert_tokens_to_ids(names[0])
    return first


def _start(parts: Parts, encoder: str, tokenizer: str, word: str) -> Tensor:
    """The mean embedding of a word's tokens, (1, width), float32."""
    ids = parts[tokenizer](word, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigError(
            f"the base's {tokenizer} reads nothing in {word!r}: set textual_inversion.initializer_token"
        )
    table: Tensor = parts[encoder].get_input_embeddings().weight
    return table[torch.tensor(ids, device=table.device)].float().mean(0, keepdim=True)


def _names(folder: Path, texts: Mapping[str, str]) -> Tokens:
    try:
        return {word: tuple(names) for word, names in json.loads(texts["tokens"]).items()}
    except (KeyError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{folder / FILE} does not name its tokens; export the weights again"
        ) from error
