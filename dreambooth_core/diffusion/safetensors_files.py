"""Safetensors files with metadata; equal content gives equal bytes."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreambooth_core.errors import ModelError


def write(path: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> None:
    """Write tensors of any device and metadata `texts`; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(on_cpu, path, metadata={"format": "pt", **texts})
    sort_header(path)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, on the CPU, and metadata; raises `ModelError` for an unreadable file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path} is not readable ({error}); export the weights again") from error


def sort_header(path: Path) -> None:
    """Sort the header's metadata, whose order is random in the library, in place.

    Only the header is read, so that a file may be larger than the memory.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the library writes compact JSON"
        file.seek(8)
        file.write(text.ljust(length))
