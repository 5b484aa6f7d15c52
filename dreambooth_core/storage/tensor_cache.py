"""What frozen models answered, kept by everything that decides the answer.

<work>/caches/<kind>/<key>.safetensors   on this machine
caches/<kind>/<key>                      the same bytes in the store, for every machine

An entry's header holds the digest of its tensors: one that is damaged counts as missing.
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
    """Different entries that had to be computed."""
    found: int
    """Different entries that were there."""


@dataclass(frozen=True)
class TensorCache:
    """Entries of one kind, on this machine first and in a store behind it."""

    kind: str
    folder: Path
    """Of all caches: the kind is a folder below."""
    store: Store | None = None

    def fetch(self, keys: Sequence[str], compute: Compute) -> CachedTensors:
        """The entries of `keys`; `compute` is called at most once, with the places of missing ones.

        It gives their entries in that order, each of which is kept as soon as it comes: whoever is
        interrupted goes on from there. A key that stands twice is computed once.
        """
        place_of = {key: place for place, key in enumerate(keys)}
        entries = {key: entry for key in place_of if (entry := self._read(key)) is not None}
        found = len(entries)
        missing = sorted(place for key, place in place_of.items() if key not in entries)
        if missing:
            for place, entry in zip(missing, compute(missing), strict=True):
                entries[keys[place]] = self._write(keys[place], entry)
        return CachedTensors(tuple(entries[key] for key in keys), len(missing), found)

    def _read(self, key: str) -> Entry | None:
        path = self._path(key)
        if path.is_file() and (entry := _parsed(path.read_bytes())) is not None:
            return entry
        if self.store is None:
            return None
        try:
            data = self.store.get(self._place(key))
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
            self.store.put(self._place(key), data)
        return plain

    def _path(self, key: str) -> Path:
        return self.folder / self.kind / f"{key}.safetensors"

    def _place(self, key: str) -> str:
        return f"caches/{self.kind}/{key}"


def key_of(**inputs: object) -> str:
    """Key of an entry: the digest of all that decides it, and of the code's epoch."""
    return digest_json({"epoch": CODE_EPOCH, **inputs})


def _keep(path: Path, data: bytes) -> None:
    with written_beside(path) as temporary:
        temporary.write_bytes(data)


def _parsed(data: bytes) -> Entry | None:
    """The tensors of an entry's bytes, None when they are not what was written."""
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
