"""SHA-256 digests of bytes, files and canonical JSON."""

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel

from dreambooth_core.errors import StorageError


def digest_of(data: bytes) -> str:
    """SHA-256 as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's content; raises `StorageError` when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error


def digest_json(value: object) -> str:
    """SHA-256 of the value as canonical JSON: sorted keys, no spaces, no NaN or infinity.

    It may contain records, configs and paths; anything else raises `TypeError` or `ValueError`.
    """
    return digest_of(canonical(value))


def canonical(value: object) -> bytes:
    """The value as canonical JSON, the input of `digest_json`."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain
    ).encode()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"a {type(value).__name__} has no canonical JSON")
