"""What a file says about itself: Stability's model metadata specification 1.0.1, `modelspec.*`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.errors import ModelError
from dreambooth_core.exports import Source
from dreambooth_core.exports._base import Base

if TYPE_CHECKING:
    from torch import Tensor

_HASH = "modelspec.hash_sha256"
_BLANK = "0x" + "0" * 64


def write(path: Path, tensors: Mapping[str, "Tensor"], texts: Mapping[str, str]) -> Path:
    """Write a safetensors file with `hash_sha256`, the digest of all that follows the header."""
    from dreambooth_core import tensor_files

    tensor_files.write(path, tensors, {**texts, _HASH: _BLANK})
    with path.open("r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        blank = f'"{_HASH}":"{_BLANK}"'.encode()
        if header.count(blank) != 1:
            raise ModelError(
                f"{path} has no place for {_HASH}; is its header laid out differently?"
            )
        file.seek(8)
        file.write(header.replace(blank, f'"{_HASH}":"0x{digest}"'.encode()))
    return path


def texts(source: Source, base: Base, implementation: str, adapter: str = "") -> dict[str, str]:
    """The keys of the specification, but for the hash.

    `implementation` names the code whose names the tensors have; `adapter` is `lora` or
    `textual-inversion`, or empty for a whole model. There is no date: the same model is the same
    bytes on any day.
    """
    about = source.about
    origin = f"{about.base} at {about.revision}" if about.revision else about.base
    known = {
        "sai_model_spec": "1.0.1",
        "architecture": "/".join(filter(None, (base.architecture, adapter))),
        "implementation": implementation,
        "title": about.title,
        "description": f"{about.trigger}: trained on {origin} by {source.method}; "
        f"weights {about.digest}",
        "resolution": f"{about.resolution}x{about.resolution}",
        "usage_hint": f"Trigger words: {about.trigger}",
        "trigger_phrase": about.trigger,
        "prediction_type": base.prediction,
        "license": about.licence or "",
    }
    return {f"modelspec.{key}": value for key, value in known.items() if value}
