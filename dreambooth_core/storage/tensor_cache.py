"""Cached outputs of frozen models, such as latents and text embeddings, under the digest of their inputs.

<work>/caches/<kind>/<key>.safetensors   on this machine
caches/<kind>/<key>                      the same bytes in the store, shared by all machines

An entry's header holds the digest of its tensors; a damaged entry counts as missing.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dreambooth_core.digests import digest_json
from dreambooth_core.errors import NotFound
from dreambooth_core.storage.stage_cache import CODE_EPOCH
from dreambooth_core.storage.stores import Store, written_beside

Entry = Mapping[str, Tensor]
Compute = Callable[[list[int]], Iterable[Entry]]


@dataclass(frozen=True)
class CachedTensors:
    """Entries in the order of their keys."""

    entries: tuple[Entry, ...]
    made: int
    """Distinct entries that were computed."""
    found: int
    """Distinct entries that were in the cache."""


@dataclass(frozen=True)
class TensorCache:
    """Entries of one kind: in a folder, and optionally in a store."""

    kind: str
    folder: Path
    """Folder of all caches; the kind is a folder below it."""
    store: Store | None = None

    def fetch(self, keys: Sequence[str], compute: Compute) -> CachedTensors:
        """The entries of `keys`; `compute` is called at most once, with the indices of the missing ones.

        It yields their entries in that order; each is stored at once, so that an interrupted call
        loses one. A key that occurs twice is computed once.
        """
        index_of = {key: index for index, key in enumerate(keys)}
        entries = {key: entry for key in index_of if (entry := self._read(key)) is not None}
        found = len(entries)
        missing = sorted(index for key, index in index_of.items() if key not in entries)
        if missing:
            for index, entry in zip(missing, compute(missing), strict=True):
                entries[keys[index]] = self._write(keys[index], entry)
        return CachedTensors(tuple(entries[key] for key in keys), len(missing), found)

    def _read(self, key: str) -> Entry | None:
        path = self._path(key)
        if path.is_file() and (entry := _parsed(path.read_bytes())) is not None:
            return entry
        if self.store is None:
            return None
        try:
            data = self.store.get(self._store_key(key))
        except NotFound:
            return None
        entry = _parsed(data)
        if entry is not None:
            _keep(path, data)
        return entry

    def _write(self, key: str, entry: Entry) -> Entry:
        plain = {name: value.detach().cpu().contiguous() for name, value in entry.items()}
        data = safetensors.torch.save(plain, metadata={"digest": _digest(plain)})
        _keep(self._path(key), data)
        if self.store is not None:
            self.store.put(self._store_key(key), data)
        return plain

    def _path(self, key: str) -> Path:
        return self.folder / self.kind / f"{key}.safetensors"

    def _store_key(self, key: str) -> str:
        return f"caches/{self.kind}/{key}"


def key_of(**inputs: object) -> str:
    """Key of an entry: digest of its inputs and `CODE_EPOCH`."""
    return digest_json({"epoch": CODE_EPOCH, **inputs})


def _keep(path: Path, data: bytes) -> None:
    with written_beside(path) as temporary:
        temporary.write_bytes(data)


def _parsed(data: bytes) -> Entry | None:
    """The tensors of an entry's bytes; None if they are damaged."""
    try:
        entry = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (safetensors.SafetensorError, ValueError):
        return None
    return entry if header.get("__metadata__", {}).get("digest") == _digest(entry) else None


def _digest(entry: Entry) -> str:
    """SHA-256 over the tensors' names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(entry):
        value = entry[name]
        digest.update(f"{name}/{value.dtype}/{tuple(value.shape)}/".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
