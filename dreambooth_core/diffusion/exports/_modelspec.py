"""File metadata by Stability's model metadata specification 1.0.1, keys `modelspec.*`."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.config.base import NAME
from dreambooth_core.diffusion.exports import TrainedModel
from dreambooth_core.diffusion.exports._base import ExportBase
from dreambooth_core.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor

_HASH = "modelspec.hash_sha256"
_BLANK = "0x" + "0" * 64


def write(path: Path, tensors: Mapping[str, "Tensor"], texts: Mapping[str, str]) -> Path:
    """Write a safetensors file with `hash_sha256`, the digest of the bytes after the header."""
    from dreambooth_core.diffusion import safetensors_files

    safetensors_files.write(path, tensors, {**texts, _HASH: _BLANK})
    with path.open("r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        blank = f'"{_HASH}":"{_BLANK}"'.encode()
        if header.count(blank) != 1:
            raise ModelError(
                f"{path} has no single placeholder for {_HASH} in its header: install the safetensors "
                "version of constraints.txt"
            )
        file.seek(8)
        file.write(header.replace(blank, f'"{_HASH}":"0x{digest}"'.encode()))
    return path


def trigger_words(source: TrainedModel) -> dict[str, str]:
    """Identifier -> trigger word, which is also the name of its embedding file.

    Empty without new tokens. Raises `ConfigError` for an identifier that is not a valid file name.
    """
    from dreambooth_core.diffusion import textual_inversion

    found = {}
    for identifier in textual_inversion.exported_tokens(source.weights):
        word = f"{source.info.title}-{identifier.strip('<>')}"
        if not re.fullmatch(NAME, word):
            raise ConfigError(
                f"the trigger word {word!r} is not a valid file name: train with a "
                "subject.identifier of letters, digits, dot, dash and underscore"
            )
        found[identifier] = word
    return found


def texts(
    source: TrainedModel, base: ExportBase, implementation: str, adapter: str = ""
) -> dict[str, str]:
    """The specification's keys except for the hash and the date.

    `implementation` is the code whose tensor names are used; `adapter` is `lora` or
    `textual-inversion`, or empty for a whole model.
    """
    from dreambooth_core.diffusion import textual_inversion

    info = source.info
    trigger = textual_inversion.insert_tokens(
        {old: (new,) for old, new in trigger_words(source).items()}, info.trigger
    )
    origin = f"{info.base} at {info.revision}" if info.revision else info.base
    known = {
        "sai_model_spec": "1.0.1",
        "architecture": "/".join(filter(None, (base.architecture, adapter))),
        "implementation": implementation,
        "title": info.title,
        "description": f"{trigger}: trained on {origin} by {source.method}; weights {info.digest}",
        "resolution": f"{info.resolution}x{info.resolution}",
        "usage_hint": f"Trigger words: {trigger}",
        "trigger_phrase": trigger,
        "prediction_type": base.prediction,
        "license": info.licence or "",
    }
    return {f"modelspec.{key}": value for key, value in known.items() if value}
