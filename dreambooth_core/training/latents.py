"""Images as the frozen autoencoder sees them: encoded once, drawn from again at every step."""

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
from dreambooth_core.storage.records import Blob, Image
from dreambooth_core.storage.stores import Store
from dreambooth_core.storage.tensor_cache import Entry, TensorCache, key_of

Numbers = tuple[int, int, int, int, int, int]


class View(NamedTuple):
    """One cut of one image."""

    latents: LatentDistribution
    """Tensors of (channels, h, w), float32, on the CPU."""
    mask: Tensor | None
    """(1, h, w) in [0, 1], 1 on the subject; None where all of the image counts."""
    numbers: Numbers
    """Original height and width, crop top and left, target height and width, in pixels."""


@dataclass(frozen=True)
class LatentEncoder:
    """The frozen autoencoder, loaded only when there is something to encode."""

    digest: str
    """Of the component's files."""
    dtype: str
    """Its numbers' type, as a word: it decides the answer's bits."""
    load: Callable[[], Callable[[Tensor], LatentDistribution]]
    """Gives what encodes pixels (1, 3, height, width) in [-1, 1]; whoever drops it frees it."""


@dataclass(frozen=True)
class CachedLatents:
    """Images with all their views; a `Source` of batches."""

    views: Mapping[tuple[int, int], View]
    made: int
    """Different views that had to be encoded."""
    found: int
    """Different views that were in the cache."""

    def get(self, index: int, view: int) -> View:
        return self.views[index, view]


class _Cut(NamedTuple):
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
    """All views of `images`, each scaled and cut to its size; only missing ones are encoded.

    Views 0 ... crops - 1 are upright, with `train.flip` the same follow mirrored; masks are read
    with `loss.masks` only. An image whose own size is not known has to be of the size that it
    trains at. One forward per view, so that an image's bits do not hang on its neighbours.
    """
    opened = lru_cache(maxsize=1)(lambda blob: _opened(store, blob))
    cuts = _cuts(images, sizes, config.train)
    listed = list(cuts.values())

    def compute(missing: list[int]) -> Iterator[Entry]:
        encode = encoder.load()
        for place in missing:
            cut = listed[place]
            photo = opened(cut.image.blob)
            _check_size(cut, photo)
            with torch.no_grad():
                answer = encode(pixels(photo, cut.crop, cut.mirrored)[None])
            yield {
                "mean": answer.mean[0].float(),
                "log_variance": answer.log_variance[0].float(),
            }

    fetched = cache.fetch([_key(cut, encoder) for cut in listed], compute)
    views = {}
    for (place, cut), entry in zip(cuts.items(), fetched.entries, strict=True):
        latents, mask = LatentDistribution(entry["mean"], entry["log_variance"]), None
        if config.loss.masks and cut.image.mask is not None:
            height, width = latents.mean.shape[1:]
            mask = mask_shares(opened(cut.image.mask), cut.crop, cut.mirrored, (height, width))
        views[place] = View(latents, mask, buckets.numbers(cut.photo, cut.crop, cut.mirrored))
    return CachedLatents(views, fetched.made, fetched.found)


def pixels(image: Pillow.Image, crop: Crop, mirrored: bool = False) -> Tensor:
    """The cut of an image as (3, height, width), float32 in [-1, 1]."""
    cut = _cut_out(image.convert("RGB"), crop, Pillow.Resampling.LANCZOS)
    values = torch.from_numpy(np.array(cut, dtype=np.float32))
    upright = (values / 127.5 - 1).permute(2, 0, 1)
    return (upright.flip(-1) if mirrored else upright).contiguous()


def mask_shares(mask: Pillow.Image, crop: Crop, mirrored: bool, shape: Size) -> Tensor:
    """How much of each latent place the mask covers in the cut: (1, h, w) float32 in [0, 1]."""
    cut = _cut_out(mask.convert("L"), crop, Pillow.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(cut, dtype=np.float32)) / 255
    upright = values.flip(-1) if mirrored else values
    return torch.nn.functional.adaptive_avg_pool2d(upright[None], shape)


def _cuts(
    images: Sequence[Image], sizes: Sequence[Size], train: Train
) -> dict[tuple[int, int], _Cut]:
    """(image, view) -> what is cut; all views of an image in a row."""
    found = {}
    for index, (image, size) in enumerate(zip(images, sizes, strict=True)):
        photo = image.size or size
        for view in range(train.crops):
            crop = buckets.crop(photo, size, view, image.blob.sha256)
            found[index, view] = _Cut(image, photo, crop, mirrored=False)
            if train.flip:
                found[index, view + train.crops] = _Cut(image, photo, crop, mirrored=True)
    return found


def _key(cut: _Cut, encoder: LatentEncoder) -> str:
    return key_of(
        image=cut.image.blob.sha256,
        resized=cut.crop.resized,
        place=cut.crop.place,
        size=cut.crop.size,
        mirrored=cut.mirrored,
        encoder=encoder.digest,
        dtype=encoder.dtype,
    )


def _opened(store: Store, blob: Blob) -> Pillow.Image:
    return Pillow.open(io.BytesIO(get_blob(store, blob)))


def _check_size(cut: _Cut, photo: Pillow.Image) -> None:
    if (photo.height, photo.width) != cut.photo:
        raise StageFailed(
            f"{cut.image.name} is {photo.height} x {photo.width} pixels where {cut.photo[0]} x "
            f"{cut.photo[1]} were expected: its record is from another version; use a new store"
        )


def _cut_out(image: Pillow.Image, crop: Crop, resample: Pillow.Resampling) -> Pillow.Image:
    """Scale and cut in one go, as if the whole image had been scaled first."""
    height, width = crop.size
    box = buckets.box((image.height, image.width), crop)
    return image.resize((width, height), resample, box=box)
