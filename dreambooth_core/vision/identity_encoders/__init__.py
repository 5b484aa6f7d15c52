"""Packaged identity encoders, named `builtin:NAME` in `evaluation.identity`: one per file.

They need neither network nor download. None of them is DINO: their scores are comparable with each
other only, never with the paper's. A new encoder is one new file with

    WEIGHTS: Path                                               # its packaged weights
    def load(preprocessing: Preprocessing) -> IdentityEncoder   # raises ModelError without weights
"""

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from PIL.Image import Image

from dreambooth_core import plugins
from dreambooth_core.digests import digest_json, digest_of_file

if TYPE_CHECKING:
    from dreambooth_core.vision.embeddings import Embeddings
    from dreambooth_core.vision.encoders import Preprocessing

PREFIX = "builtin:"


class IdentityEncoder(Protocol):
    """Embeds images so that images of one subject are close."""

    def identity_images(self, images: Sequence[Image]) -> "Embeddings":
        """(images, hidden), of unit length."""
        ...


def load_identity_encoder(
    source: str, revision: str | None, preprocessing: "Preprocessing"
) -> IdentityEncoder:
    """A packaged encoder, or one by folder or Hub id; raises `ConfigError` and `ModelError`."""
    from dreambooth_core.vision.encoders import ImageEncoder

    if not source.startswith(PREFIX):
        return ImageEncoder(source, revision, preprocessing)
    found: IdentityEncoder = _module(source).load(preprocessing)
    return found


def builtin_digest(source: str) -> str:
    """SHA-256 of a packaged encoder's name and weights; raises `ConfigError` for an unknown name."""
    module = _module(source)
    return digest_json({"builtin": source, "weights": digest_of_file(module.WEIGHTS)})


def _module(source: str) -> ModuleType:
    return plugins.load(__name__, source.removeprefix(PREFIX))
