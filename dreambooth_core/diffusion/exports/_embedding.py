"""Embedding files of new tokens, one per identifier; the file's name is the trigger word."""

from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.diffusion.exports import TrainedModel, _modelspec
from dreambooth_core.diffusion.exports._base import base_of

if TYPE_CHECKING:
    from torch import Tensor

_KEYS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


def write(source: TrainedModel, out: Path) -> list[Path]:
    """Write `<title>-<identifier>.safetensors` for each identifier; nothing without new tokens.

    Read by A1111 and ComfyUI for SD 1.x, 2.x and SDXL, and by diffusers' `load_textual_inversion`.
    """
    from dreambooth_core.diffusion import safetensors_files, textual_inversion

    if not (source.weights / textual_inversion.FILE).is_file():
        return []
    rows, _ = safetensors_files.read(source.weights / textual_inversion.FILE)
    words, first, written = _modelspec.trigger_words(source), 0, []
    texts = _modelspec.texts(source, base_of(source.base), "diffusers", "textual-inversion")
    for identifier, tokens in textual_inversion.exported_tokens(source.weights).items():
        word = words[identifier]
        part = {name: tensor[first : first + len(tokens)] for name, tensor in rows.items()}
        own_texts = {
            **texts,
            "modelspec.usage_hint": f"Trigger word: {word}",
            "modelspec.trigger_phrase": word,
        }
        written.append(_modelspec.write(out / f"{word}.safetensors", _named(part), own_texts))
        first += len(tokens)
    return written


def _named(rows: dict[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Tensor names: A1111's `emb_params` for one encoder, `clip_l` and `clip_g` for SDXL's two."""
    if len(rows) == 1:
        return dict(zip(("emb_params",), rows.values(), strict=True))
    return {_KEYS[name]: tensor for name, tensor in rows.items()}
