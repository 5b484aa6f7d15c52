"""Checks of finished images: near-duplicates and the safety checker's flag."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dreambooth_core.diffusion.families import quiet
from dreambooth_core.errors import ModelError, one_line
from dreambooth_core.vision.similarity import difference_hash

if TYPE_CHECKING:
    from PIL.Image import Image

ROWS = 256
"""Images compared with all earlier ones at once."""
BATCH = 8
"""Images per forward of the safety checker."""

Near = Callable[[NDArray[np.intp]], NDArray[np.bool_]]
"""Indices of r images -> (r, images) mask: whether each is near each of all."""
Hashes = NDArray[np.uint8]
"""(images, 8): 64 bits each."""


def packed_hash(image: "Image") -> Hashes:
    """(8,) bytes: the bits of the image's `difference_hash`."""
    return np.packbits(difference_hash(image))


def repeats_by_hash(hashes: Hashes, distance: int) -> tuple[int | None, ...]:
    """For each image the first earlier one whose hash differs in at most `distance` bits."""
    return _first_before(
        len(hashes),
        lambda rows: np.bitwise_count(hashes[rows, None] ^ hashes[None]).sum(-1) <= distance,
    )


def repeats_by_cosine(embeddings: NDArray[np.float64], cosine: float) -> tuple[int | None, ...]:
    """For each image the first earlier one with at least this cosine of unit-length embeddings."""
    return _first_before(len(embeddings), lambda rows: embeddings[rows] @ embeddings.T >= cosine)


def unsafe(images: Sequence["Image"], source: str, revision: str | None) -> tuple[bool, ...]:
    """Flag of diffusers' StableDiffusionSafetyChecker per image; no image is blackened.

    `source` is a folder or a Hub id with its weights (safetensors) and preprocessor. Raises
    `ModelError` when it is none.
    """
    import torch
    from diffusers.pipelines.stable_diffusion import safety_checker
    from transformers import CLIPImageProcessorPil

    quiet()
    hub = {"revision": revision} if revision else {}
    try:
        checker = safety_checker.StableDiffusionSafetyChecker.from_pretrained(
            source, use_safetensors=True, **hub
        ).eval()
        processor = CLIPImageProcessorPil.from_pretrained(source, **hub)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"no safety checker at {source}: name a folder or a Hub id with a "
            f"StableDiffusionSafetyChecker and its preprocessor ({one_line(error, 200)})"
        ) from error
    flags: list[bool] = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = processor(images=batch, return_tensors="pt").pixel_values
            # the checker blackens flagged images of its second argument: give it placeholders
            flags += checker(pixels, [np.zeros((1, 1, 3)) for _ in batch])[1]
    return tuple(map(bool, flags))


def _first_before(count: int, near: Near) -> tuple[int | None, ...]:
    return tuple(first for start in range(0, count, ROWS) for first in _block(start, count, near))


def _block(start: int, count: int, near: Near) -> Iterator[int | None]:
    rows = np.arange(start, min(start + ROWS, count))
    for earlier in np.tril(near(rows), start - 1):
        yield int(earlier.argmax()) if earlier.any() else None
