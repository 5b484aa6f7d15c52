"""Latent distributions of images: encoded once by the frozen autoencoder, cached, sampled at every step."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from dreambooth_core.config import Config, Train
from dreambooth_core.data import buckets
from dreambooth_core.data.buckets import Crop, Size
from dreambooth_core.diffusion.latents import LatentDistribution
from dreambooth_core.errors import StageFailed
from dreambooth_core.storage.blobs import get_blob
from dreambooth_core.storage.records import Image
from dreambooth_core.storage.stores import Store
from dreambooth_core.storage.tensor_cache import Entry, TensorCache, key_of

Numbers = tuple[int, int, int, int, int, int]


class View(NamedTuple):
    """One crop of one image, encoded."""

    latents: LatentDistribution
    """Tensors of (channels, h, w), float32, on the CPU."""
    mask: Tensor | None
    """(1, h, w) in [0, 1], 1 on the subject; None if the whole image counts."""
    numbers: Numbers
    """Original height and width, crop top and left, target height and width, in pixels."""


@dataclass(frozen=True)
class LatentEncoder:
    """The frozen autoencoder, loaded only if an image is not cached."""

    digest: str
    """SHA-256 of the component's files."""
    dtype: str
    """Name of its number type, which decides the bits of the latents."""
    load: Callable[[], Callable[[Tensor], LatentDistribution]]
    """Returns a function that encodes pixels (1, 3, height, width) in [-1, 1] and owns the model."""


@dataclass(frozen=True)
class CachedLatents:
    """Images with all their views; a `LatentSource` of batches."""

    views: Mapping[tuple[int, int], View]
    made: int
    """Distinct views that were encoded now."""
    found: int
    """Distinct views that came from the cache."""

    def get(self, index: int, view: int) -> View:
        return self.views[index, view]


class _CroppedImage(NamedTuple):
    image: Image
    photo: Size
    crop: Crop
    mirrored: bool


def cached_latents(
    store: Store,
    images: Sequence[Image],
    sizes: Sequence[Size],
    config: Config,
    cache: TensorCache,
    encoder: LatentEncoder,
) -> CachedLatents:
    """All views of `images`, each scaled and cropped to its size; only missing ones are encoded.

    Views 0 ... crops - 1 are upright; with `train.flip` their mirror images follow. Masks are read
    with `loss.masks` only. An image without a recorded size must have its training size. One forward
    per view, so that the bits of a view do not depend on a batch.
    """
    read = lru_cache(maxsize=1)(lambda blob: Pillow.open(io.BytesIO(get_blob(store, blob))))
    crops = _crops(images, sizes, config.train)
    listed = list(crops.values())

    def compute(missing: list[int]) -> Iterator[Entry]:
        encode = encoder.load()
        for index in missing:
            item = listed[index]
            photo = read(item.image.blob)
            _check_size(item, photo)
            with torch.no_grad():
                encoded = encode(pixels(photo, item.crop, item.mirrored)[None])
            yield {
                "mean": encoded.mean[0].float(),
                "log_variance": encoded.log_variance[0].float(),
            }

    fetched = cache.fetch([_key(item, encoder) for item in listed], compute)
    views = {}
    for (view, item), entry in zip(crops.items(), fetched.entries, strict=True):
        latents, mask = LatentDistribution(entry["mean"], entry["log_variance"]), None
        if config.loss.masks and item.image.mask is not None:
            height, width = latents.mean.shape[1:]
            mask = mask_shares(read(item.image.mask), item.crop, item.mirrored, (height, width))
        views[view] = View(
            latents, mask, buckets.size_conditioning(item.photo, item.crop, item.mirrored)
        )
    return CachedLatents(views, fetched.made, fetched.found)


def pixels(image: Pillow.Image, crop: Crop, mirrored: bool = False) -> Tensor:
    """A crop of an image as (3, height, width), float32 in [-1, 1]."""
    cropped = _cropped(image.convert("RGB"), crop, Pillow.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(cropped, dtype=np.float32))
    upright = (values / 127.5 - 1).permute(2, 0, 1)
    return (upright.flip(-1) if mirrored else upright).contiguous()


def mask_shares(mask: Pillow.Image, crop: Crop, mirrored: bool, shape: Size) -> Tensor:
    """Share of each latent pixel that the mask covers in the crop: (1, h, w) float32 in [0, 1]."""
    cropped = _cropped(mask.convert("L"), crop, Pillow.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(cropped, dtype=np.float32)) / 255
    upright = values.flip(-1) if mirrored else values
    return torch.nn.functional.adaptive_avg_pool2d(upright[None], shape)


def _crops(
    images: Sequence[Image], sizes: Sequence[Size], train: Train
) -> dict[tuple[int, int], _CroppedImage]:
    """(image, view) -> its crop; the views of an image are consecutive."""
    found = {}
    for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
        photo = image.size or size
        for view in range(train.crops):
            crop = buckets.crop(photo, size, view, image.blob.sha256)
            found[index, view] = _CroppedImage(image, photo, crop, mirrored=False)
            if train.flip:
                found[index, view + train.crops] = _CroppedImage(image, photo, crop, mirrored=True)
    return found


def _key(item: _CroppedImage, encoder: LatentEncoder) -> str:
    return key_of(
        image=item.image.blob.sha256,
        resized=item.crop.resized,
        offset=item.crop.offset,
        size=item.crop.size,
        mirrored=item.mirrored,
        encoder=encoder.digest,
        dtype=encoder.dtype,
    )


def _check_size(item: _CroppedImage, photo: Pillow.Image) -> None:
    if (photo.height, photo.width) != item.photo:
        raise StageFailed(
            f"{item.image.name} is {photo.height} x {photo.width} pixels where {item.photo[0]} x "
            f"{item.photo[1]} were expected: its record is from another version; use a new store"
        )


def _cropped(image: Pillow.Image, crop: Crop, resample: Pillow.Resampling) -> Pillow.Image:
    """Scale and crop in one operation, equal to scaling the whole image first."""
    height, width = crop.size
    box = buckets.box((image.height, image.width), crop)
    return image.resize((width, height), resample, box=box)
