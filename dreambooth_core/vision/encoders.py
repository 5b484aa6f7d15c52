"""Encoders of the metrics: CLIP (images and texts) and an identity encoder such as DINO (images).

An identity encoder is a vision model of transformers with a class token (DINO, DINOv2, ViT) or a
pooled output (ResNet, ConvNeXt, Swin, EfficientNet) as embedding. Sources are folders in transformers'
format or Hub ids such as `openai/clip-vit-base-patch32` and `facebook/dino-vits16`. Packaged identity
encoders, `builtin:NAME`, are in `identity_encoders/`.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from PIL.Image import Image, Resampling

from dreambooth_core.digests import digest_json, digest_of_file
from dreambooth_core.errors import ConfigError, ModelError, one_line
from dreambooth_core.hub import pinned
from dreambooth_core.vision.embeddings import Embeddings, unit
from dreambooth_core.vision.identity_encoders import PREFIX, builtin_digest

T = TypeVar("T")

BATCH = 16
"""Images or texts per forward; batches are padded, since the batch size affects the last bits."""
Preprocessing = Literal["paper", "own"]
RESIZE_RATIO: Mapping[str, float] = {"clip": 1.0, "identity": 256 / 224}
"""Shorter side after resizing over side of the centre crop, as CLIP's and DINO's authors evaluate."""

CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
"""Parameter names of a class token in transformers; such a model's first token is the class token."""


class ImageEncoder:
    """A loaded encoder; all embeddings have unit length."""

    def __init__(
        self, source: str, revision: str | None, preprocessing: Preprocessing = "paper"
    ) -> None:
        """Load from a folder or the Hub's cache, safetensors only; raises `ModelError` if missing.

        `paper` preprocesses as in the encoders' papers, with side, mean and deviation from the
        folder; `own` entirely as the folder's preprocessor.
        """
        from transformers import AutoImageProcessor, AutoModel

        self._source, self._preprocessing = source, preprocessing
        commit = pinned(source, revision)
        self._revision = {"revision": commit} if commit else {}
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # half precision is five times slower on a CPU
        model = self._load(AutoModel, dtype=torch.float32, use_safetensors=True)
        self._model = model.eval().to(self._device)
        self._processor = self._load(AutoImageProcessor)
        self._tokenizer: Any = None

    def clip_images(self, images: Sequence[Image]) -> Embeddings:
        """(images, projection) of CLIP's image tower."""
        return self._embed(
            images, "clip", lambda x: self._model.get_image_features(**x).pooler_output
        )

    def identity_images(self, images: Sequence[Image]) -> Embeddings:
        """(images, hidden): the last layer's class token, or the pooled output without one.

        Raises `ConfigError` for a model with neither as one row per image.
        """
        return self._embed(images, "identity", lambda x: self._row_per_image(self._model(**x)))

    def clip_texts(self, texts: Sequence[str]) -> Embeddings:
        """(texts, projection) of CLIP's text tower; texts are truncated to its token limit."""
        from transformers import AutoTokenizer

        if self._tokenizer is None:
            self._tokenizer = self._load(AutoTokenizer)
        limit = self._model.config.text_config.max_position_embeddings
        parts = []
        for batch, count in batches(texts):
            tokens = self._tokenizer(
                batch, padding="max_length", truncation=True, max_length=limit, return_tensors="pt"
            ).to(self._device)
            with torch.inference_mode():
                output = self._model.get_text_features(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                )
            parts.append(output.pooler_output[:count].float().cpu())
        return self._finite(torch.cat(parts))

    def _embed(self, images: Sequence[Image], tower: str, forward: Any) -> Embeddings:
        parts = []
        for batch, count in batches(images):
            with torch.inference_mode():
                rows = forward(self._prepared([image.convert("RGB") for image in batch], tower))
            parts.append(rows[:count].float().cpu())
        return self._finite(torch.cat(parts))

    def _row_per_image(self, output: Any) -> torch.Tensor:
        """(images, hidden) of a vision model's output."""
        hidden, pooled = output.get("last_hidden_state"), output.get("pooler_output")
        if hidden is not None and hidden.ndim == 3 and self._has_class_token:
            return torch.as_tensor(hidden[:, 0])
        if pooled is not None and pooled.ndim > 1 and pooled[0].numel() == pooled.shape[1]:
            return torch.as_tensor(pooled.flatten(1))
        shapes = [
            f"{name} of shape {tuple(value.shape)}" if value is not None else f"no {name}"
            for name, value in (("last_hidden_state", hidden), ("pooler_output", pooled))
        ]
        raise ConfigError(
            f"the identity encoder at {self._source} ({type(self._model).__name__}) has no class "
            f"token and no pooled output of one row per image: it returns {' and '.join(shapes)} "
            f"for {BATCH} images; set evaluation.identity to a DINO, DINOv2, ViT, ConvNeXt or ResNet"
        )

    @functools.cached_property
    def _has_class_token(self) -> bool:
        names = (name.rpartition(".")[2] for name, _ in self._model.named_parameters())
        return any(name in CLASS_TOKENS for name in names)

    def _prepared(self, images: list[Image], tower: str) -> Any:
        """The encoder's input for RGB images."""
        if self._preprocessing == "own":
            return self._processor(images=images, return_tensors="pt").to(self._device)
        side = _side(self._processor)
        squares = [center_crop(image, side, RESIZE_RATIO[tower]) for image in images]
        return self._processor(
            images=squares, do_resize=False, do_center_crop=False, return_tensors="pt"
        ).to(self._device)

    def _finite(self, rows: torch.Tensor) -> Embeddings:
        if not torch.isfinite(rows).all():
            raise ModelError(
                f"the encoder at {self._source} returns values that are not finite: "
                "its weights are damaged, or need another precision than float32"
            )
        return unit(np.asarray(rows))

    def _load(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(self._source, **self._revision, **options)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(
                f"no encoder for the metrics at {self._source}: name a folder or a Hub id with a "
                f"model, its preprocessor and (CLIP) its tokenizer ({one_line(error, 200)})"
            ) from error


def encoder_digest(source: str, revision: str | None) -> str:
    """SHA-256 over a folder's file names and contents, over Hub id and commit, or of a packaged encoder."""
    if source.startswith(PREFIX):
        return builtin_digest(source)
    folder = Path(source)
    if not folder.is_dir():
        return digest_json({"hub": source, "revision": pinned(source, revision)})
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return digest_json([[p.relative_to(folder).as_posix(), digest_of_file(p)] for p in files])


def center_crop(image: Image, side: int, ratio: float) -> Image:
    """The central `side` x `side` square after resizing the shorter side to `ratio * side`.

    Bicubic, the longer side rounded down, as torchvision's `Resize` and `CenterCrop`.
    """
    short, edge = min(image.size), round(side * ratio)
    width, height = (edge if x == short else int(edge * x / short) for x in image.size)
    resized = image.resize((width, height), Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return resized.crop((left, top, left + side, top + side))


def _side(processor: Any) -> int:
    """Side of the encoder's square input, in pixels."""
    crop = getattr(processor, "crop_size", None)
    size = crop if crop and getattr(processor, "do_center_crop", False) else processor.size
    return int(size["height"] if "height" in size else size["shortest_edge"])


def batches(things: Sequence[T]) -> Iterator[tuple[list[T], int]]:
    """Batches of `BATCH`, the last one padded with repeats, and the number of items in each."""
    for start in range(0, len(things), BATCH):
        batch = list(things[start : start + BATCH])
        yield batch + [batch[-1]] * (BATCH - len(batch)), len(batch)
