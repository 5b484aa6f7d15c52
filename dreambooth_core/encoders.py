"""What the metrics see with: a CLIP, and an identity encoder in DINO's role.

Both are folders in transformers' format or Hub ids, `openai/clip-vit-base-patch32` and
`facebook/dino-vits16` among them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from dreambooth_core.blobs import digest_json, digest_of_file
from dreambooth_core.errors import ModelError
from dreambooth_core.metrics import Embeddings, unit

BATCH = 16
"""Images per forward."""


class Encoder:
    """A loaded encoder; every method gives rows of unit length."""

    def __init__(self, source: str, revision: str | None) -> None:
        """Load from a folder or the Hub's cache; raises `ModelError` when there is none."""
        from transformers import AutoImageProcessor, AutoModel

        self._source = source
        self._where = {"revision": revision} if revision else {}
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = self._load(AutoModel).eval().to(self._device)
        self._processor = self._load(AutoImageProcessor)
        self._tokenizer: Any = None

    def clip_images(self, images: Sequence[Image]) -> Embeddings:
        """(images, projection) of CLIP's image tower."""
        return self._embed(images, lambda x: self._model.get_image_features(**x).pooler_output)

    def identity_images(self, images: Sequence[Image]) -> Embeddings:
        """(images, hidden) of the class token after the last layer, as DINO is read."""
        return self._embed(images, lambda x: self._model(**x).last_hidden_state[:, 0])

    def clip_texts(self, texts: Sequence[str]) -> Embeddings:
        """(texts, projection) of CLIP's text tower; longer texts are cut at its limit."""
        from transformers import AutoTokenizer

        if self._tokenizer is None:
            self._tokenizer = self._load(AutoTokenizer)
        limit = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).to(self._device)
        with torch.inference_mode():
            found = self._model.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
        return unit(found.pooler_output.float().cpu().numpy())

    def _embed(self, images: Sequence[Image], forward: Any) -> Embeddings:
        parts = []
        with torch.inference_mode():
            for batch in _batches(images):
                pixels = self._processor(images=batch, return_tensors="pt").to(self._device)
                parts.append(forward(pixels).float().cpu())
        return unit(torch.cat(parts).numpy())

    def _load(self, kind: Any) -> Any:
        try:
            return kind.from_pretrained(self._source, **self._where)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"no encoder for the metrics at {self._source}: name a folder or a Hub id with a "
                f"model, its preprocessor and (CLIP) its tokenizer ({str(error).splitlines()[0]})"
            ) from error


def encoder_digest(source: str, revision: str | None) -> str:
    """What names an encoder's content: SHA-256 over a folder's files, or Hub id and revision."""
    folder = Path(source)
    if not folder.is_dir():
        return digest_json({"hub": source, "revision": revision})
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_json([[p.relative_to(folder).as_posix(), digest_of_file(p)] for p in files])


def _batches(images: Sequence[Image]) -> Iterator[list[Image]]:
    for start in range(0, len(images), BATCH):
        yield [image.convert("RGB") for image in images[start : start + BATCH]]
