"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): train the embeddings of new tokens.

Prompts contain the identifier; `insert_tokens` replaces it by the new tokens, in training and in
sampling. Only the new tokens' embeddings are parameters: gradients, optimizer and weight decay do
not reach the existing table.
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
"""Identifier -> the tokens that replace it in prompts."""


class ExtendedEmbedding(nn.Module):
    """A frozen embedding table and trainable rows for the token ids from `first` on."""

    def __init__(self, table: nn.Embedding, rows: Tensor, first: int) -> None:
        super().__init__()
        self.table = table.requires_grad_(False)
        self.new_tokens = nn.Parameter(rows.detach().clone().float())
        self.first = first

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings of token ids (...): (..., width), in the table's dtype."""
        is_new = (ids >= self.first) & (ids < self.first + len(self.new_tokens))
        old: Tensor = self.table(ids.masked_fill(is_new, 0))
        new = functional.embedding((ids - self.first).where(is_new, 0), self.new_tokens)
        return torch.where(is_new[..., None], new.to(old.dtype), old)


def is_new_token(parameter: str) -> bool:
    """Whether a trainable parameter's name is that of new tokens' embeddings."""
    return parameter.endswith(".new_tokens")


def tokens_of(config: Config) -> Tokens:
    """The new tokens of each subject's identifier: `sks` -> `<sks-0>`, `<sks-1>` ..."""
    words = [subject.identifier for subject in config.subjects]
    count = config.textual_inversion.num_vectors
    return {word: tuple(f"<{word.strip('<>')}-{i}>" for i in range(count)) for word in words}


def insert_tokens(tokens: Tokens, prompt: str) -> str:
    """The prompt with each identifier that is a separate word replaced by its tokens.

    Idempotent; without tokens the prompt is returned unchanged.
    """
    if not tokens:
        return prompt
    words = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    separate = rf"(?<!\w)(?:{words})(?!\w|-\d+>)"
    return re.sub(separate, lambda match: "".join(tokens[match[0]]), prompt)


def prepare(family: Family, parts: Parts, config: Config) -> dict[str, dict[str, nn.Parameter]]:
    """Add the tokens to the tokenizers and rows for them to the text encoders, in place.

    Each subject's rows start as the mean embedding of its initializer word. Returns the trainable
    parameters: text encoder -> parameter name -> rows, (tokens, width) float32. Raises `ConfigError`
    for a tokenizer that already has the tokens, and for an initializer word without tokens.
    """
    tokens = tokens_of(config)
    initializers = [
        config.textual_inversion.initializer_token or subject.class_noun
        for subject in config.subjects
    ]
    rows = {
        name: torch.cat(
            [_mean_embedding(parts, name, tokenizer, word) for word in initializers]
        ).repeat_interleave(config.textual_inversion.num_vectors, dim=0)
        for name, tokenizer in family.tokenizers.items()
    }
    first = _add_tokens(family, parts, tokens)
    trained = {}
    for name, new in rows.items():
        encoder = parts[name]
        table = encoder.get_input_embeddings()
        extended = ExtendedEmbedding(table, new, first[family.tokenizers[name]])
        encoder.set_input_embeddings(extended.to(table.weight.device))
        trained[name] = {
            key: weight for key, weight in encoder.named_parameters() if is_new_token(key)
        }
    return trained


def export(family: Family, parts: Parts, config: Config, folder: Path) -> None:
    """Write the new embeddings to `FILE`: one tensor per text encoder, and the tokens as metadata."""
    rows = {name: parts[name].get_input_embeddings().new_tokens for name in family.tokenizers}
    texts = {"tokens": json.dumps(tokens_of(config))}
    safetensors_files.write(folder / FILE, rows, texts)


def exported_tokens(folder: Path) -> Tokens:
    """The tokens of exported weights in a folder, for `insert_tokens`; empty without `FILE`."""
    if not (folder / FILE).is_file():
        return {}
    return _names(folder, safetensors_files.read(folder / FILE)[1])


def apply(family: Family, parts: Parts, folder: Path) -> None:
    """Add the exported tokens to loaded parts, as plain rows of their embedding tables.

    Raises `ModelError` for a file of another family or base.
    """
    rows, texts = safetensors_files.read(folder / FILE)
    if rows.keys() != family.tokenizers.keys():
        raise ModelError(
            f"{folder / FILE} has embeddings for {', '.join(rows)}, but the base takes new tokens "
            f"in {', '.join(family.tokenizers) or 'no encoder'}; use the base of the weights"
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
    """A table with the new rows from `first` on, which may overwrite spare rows."""
    old = table.weight.detach()
    if new.shape[1] != old.shape[1]:
        raise ModelError(
            f"the new tokens' embeddings have {new.shape[1]} dimensions, the base's "
            f"{old.shape[1]}; use the base that they were trained on"
        )
    whole = old.new_zeros(max(len(old), first + len(new)), old.shape[1])
    whole[: len(old)] = old
    whole[first : first + len(new)] = new.to(old)
    rows, width = whole.shape
    grown = nn.Embedding(rows, width, padding_idx=table.padding_idx, _weight=whole)
    return grown.requires_grad_(False)


def _add_tokens(family: Family, parts: Parts, tokens: Tokens) -> dict[str, int]:
    """Add the tokens; returns tokenizer -> id of the first new token, the others follow it."""
    from tokenizers import AddedToken

    all_names = [name for names in tokens.values() for name in names]
    added = [AddedToken(name, normalized=False) for name in all_names]
    first = {}
    for component in dict.fromkeys(family.tokenizers.values()):
        tokenizer: Any = parts[component]
        if not tokenizer.get_vocab().keys().isdisjoint(all_names):
            raise ConfigError(
                f"the base's {component} already has tokens such as {all_names[0]}: "
                "choose another subject.identifier"
            )
        tokenizer.add_tokens(added)
        first[component] = tokenizer.convert_tokens_to_ids(all_names[0])
    return first


def _mean_embedding(parts: Parts, encoder: str, tokenizer: str, word: str) -> Tensor:
    """The mean embedding of a word's tokens, (1, width), float32."""
    ids = parts[tokenizer](word, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ConfigError(
            f"the base's {tokenizer} has no token for {word!r}: set textual_inversion.initializer_token"
        )
    table: Tensor = parts[encoder].get_input_embeddings().weight
    return table[torch.tensor(ids, device=table.device)].float().mean(0, keepdim=True)


def _names(folder: Path, texts: Mapping[str, str]) -> Tokens:
    try:
        return {word: tuple(names) for word, names in json.loads(texts["tokens"]).items()}
    except (KeyError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{folder / FILE} has no token names in its metadata; export the weights again"
        ) from error
