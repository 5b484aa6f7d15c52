"""What is looked for in finished images, so that people need not: repeats, and what is not for all."""

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
"""Compared at once with all others."""
BATCH = 8
"""Images per forward of the safety checker."""

Close = Callable[[NDArray[np.intp]], NDArray[np.bool_]]
"""Places of some images -> whether each is close to each of all."""
Hashes = NDArray[np.uint8]
"""(images, 8): 64 bits each."""


def packed_hash(image: "Image") -> Hashes:
    """(8,) bytes: the bits of the image's `difference_hash`."""
    return np.packbits(difference_hash(image))


def repeats_by_hash(hashes: Hashes, distance: int) -> tuple[int | None, ...]:
    """For each image the first one before it whose hash differs in at most `distance` bits."""
    return _first_before(
        len(hashes),
        lambda rows: np.bitwise_count(hashes[rows, None] ^ hashes[None]).sum(-1) <= distance,
    )


def repeats_by_cosine(embeddings: NDArray[np.float64], cosine: float) -> tuple[int | None, ...]:
    """For each image the first one before it whose embedding of unit length is at least so close."""
    return _first_before(len(embeddings), lambda rows: embeddings[rows] @ embeddings.T >= cosine)


def unsafe(images: Sequence["Image"], source: str, revision: str | None) -> tuple[bool, ...]:
    """What diffusers' StableDiffusionSafetyChecker says of each image; nothing is blackened.

    `source` is a folder or a Hub id with its weights (safetensors) and preprocessor. Raises
    `ModelError` when it is none.
    """
    import torch
    from diffusers.pipelines.stable_diffusion import safety_checker
    from transformers import CLIPImageProcessorPil

    quiet()
    where = {"revision": revision} if revision else {}
    try:
        checker = safety_checker.StableDiffusionSafetyChecker.from_pretrained(
            source, use_safetensors=True, **where
        ).eval()
        processor = CLIPImageProcessorPil.from_pretrained(source, **where)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"no safety checker at {source}: name a folder or a Hub id with a "
            f"StableDiffusionSafetyChecker and its preprocessor ({one_line(error, 200)})"
        ) from error
    found: list[bool] = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            batch = [image.convert("RGB") for image in images[start : start + BATCH]]
            pixels = processor(images=batch, return_tensors="pt").pixel_values
            # the second argument is what it blackens, which we do not want of any image
            found += checker(pixels, [np.zeros((1, 1, 3)) for _ in batch])[1]
    return tuple(map(bool, found))


def _first_before(count: int, close: Close) -> tuple[int | None, ...]:
    return tuple(place for start in range(0, count, ROWS) for place in _block(start, count, close))


def _block(start: int, count: int, close: Close) -> Iterator[int | None]:
    rows = np.arange(start, min(start + ROWS, count))
    for near in np.tril(close(rows), start - 1):
        yield int(near.argmax()) if near.any() else None
