"""Search by cosine of CLIP's embeddings (Radford et al. 2021), on the store's embedding index.

Generated images by a text or by an image file, and training photos by a generated image. The store's
image sets and the manifests of its sampling jobs are searched; only new images are embedded (see
`metrics.embedding_index`).
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.batch_sampling.models import instance_images, weights_of_model
from dreambooth_core.config import Config
from dreambooth_core.data.contact_sheets import data_url
from dreambooth_core.diffusion.sampling import ORIGIN_FILE, SampleOrigin
from dreambooth_core.errors import ConfigError
from dreambooth_core.reports.gallery import GalleryImage, gallery
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.blobs import blob_key, get_blob, get_record
from dreambooth_core.storage.records import BASE, Blob, Image, ImageSet, ModelReference, Record
from dreambooth_core.storage.stores import Store, open_store

if TYPE_CHECKING:
    from PIL.Image import Image as Picture


DIGEST = re.compile(r"[0-9a-f]{8,64}")
"""A SHA-256 in hexadecimal digits, or the first of them."""
PHOTO_SET = re.compile(r"datasets/(?:[^/]+/)?[0-9a-f]{64}\.json")

Runs = Mapping[str, ModelReference | None]
"""Name -> model; None for `base` and for the name of a sampling job."""


class SearchableImage(Record):
    """A generated image that can be found."""

    image: Blob
    prompt: str
    seed: int
    model: str
    weights: tuple[str, ...]
    """Digests of the weights loaded into the base; () for the base."""
    job: str | None = None
    """Name of its sampling job; None for images of runs and evaluations."""
    size: tuple[int, int]
    """Height and width in pixels."""


class SearchHit(Record):
    """A found image."""

    score: float
    """Cosine of CLIP's embeddings of image and text, in [-1, 1]."""
    uri: str
    prompt: str
    seed: int
    model: str
    job: str | None
    image: Blob
    size: tuple[int, int]


class SearchQuery(Record):
    """A text or an image file, and the number of images wanted."""

    text: str = ""
    """Not used with `image`."""
    image: Path | None = None
    """A photo or another image file; it is not stored."""
    top: int = 20

    @property
    def title(self) -> str:
        return f"“{self.text}”" if self.image is None else self.image.name


class PhotoHit(Record):
    """A training photo near a generated image."""

    score: float
    """Cosine of CLIP's embeddings of the two images, in [-1, 1]."""
    bits: int
    """Differing bits of the two 64-bit difference hashes, mirrored or not; near copies have at most 6."""
    uri: str
    name: str
    """File name in the photo set."""
    image: Blob
    size: tuple[int, int] | None
    """Height and width in pixels."""


def search(
    config: Config | None, runs: Runs, query: SearchQuery
) -> tuple[tuple[SearchHit, ...], Config]:
    """The images that match the query best, best first, and the config whose CLIP and store were used.

    Only images of `runs` are searched, or all when it is empty. The config is `config`, or that of
    the first model of `runs`. Raises `ConfigError` when there is neither, and when nothing can be
    searched; `ModelError` when CLIP is missing; `ImageRefused` for an unusable image file.
    """
    used = _config_of(config, runs)
    with local_services(used):
        store = open_store(used.storage)
        wanted = _wanted(store, runs)
        images = generated_images(store, lambda image: wanted is None or _matches(image, wanted))
        if not images:
            names = ", ".join(runs) or "any run"
            raise ConfigError(f"no generated images of {names} in {store.uri}")
        return _ranked(used, store, query, images), used


def nearest_photos(
    config: Config | None, runs: Runs, sample: str, top: int
) -> tuple[tuple[PhotoHit, ...], Config]:
    """The training photos nearest to a generated image, best first, and the config that was used.

    `sample` is an image file, or an image of the store by its URI, its SHA-256 or at least the first 8
    digits of it. Photos are those of the models of `runs`, or all of the store when it is empty. Raises
    as `search` does.
    """
    used = _config_of(config, runs)
    with local_services(used):
        store = open_store(used.storage)
        photos = _photos(store, runs)
        if not photos:
            names = ", ".join(runs) or "any training"
            raise ConfigError(f"no photos of {names} in {store.uri}")
        return _nearest_photos(used, store, _picture(used, store, sample), photos, top), used


def generated_images(
    store: Store, wanted: Callable[[SearchableImage], bool]
) -> tuple[SearchableImage, ...]:
    """The wanted images of a store, each once; a job's entry, which has model names, comes first."""
    found: dict[str, SearchableImage] = {}
    for image in filter(wanted, chain(_job_images(store), _set_images(store))):
        found.setdefault(image.image.sha256, image)
    return tuple(found.values())


def page(config: Config, query: SearchQuery, hits: Sequence[SearchHit]) -> str:
    """Gallery of the hits as HTML."""
    with local_services(config):
        store = open_store(config.storage)
        images = [
            GalleryImage(
                index=index,
                thumb=data_url(get_blob(store, hit.image)),
                prompt=hit.prompt,
                model=hit.model,
                seed=str(hit.seed),
                height=hit.size[0],
                width=hit.size[1],
                similarity=hit.score,
            )
            for index, hit in enumerate(hits)
        ]
    return gallery(query.title, f"The {len(hits)} images that fit best.", images)


def _wanted(store: Store, runs: Runs) -> tuple[set[str], set[str]] | None:
    """Digests of weights ("" for the base) and names of jobs to search; None for all.

    Raises `ConfigError` for a name that is neither a model nor a job in the store.
    """
    if not runs:
        return None
    digests, jobs = set(), set()
    for name, model in runs.items():
        if model is not None:
            digests.add(weights_of_model(store, model).digest)
        elif name == BASE:
            digests.add("")
        elif next(iter(store.keys(f"jobs/{name}/")), None) is not None:
            jobs.add(name)
        else:
            raise ConfigError(
                f"{name} is no registered model, config or sampling job in {store.uri}"
            )
    return digests, jobs


def _matches(image: SearchableImage, wanted: tuple[set[str], set[str]]) -> bool:
    digests, jobs = wanted
    return image.job in jobs or not digests.isdisjoint(image.weights or ("",))


def _job_images(store: Store) -> Iterator[SearchableImage]:
    for key in store.keys("jobs/"):
        if key.endswith("/manifest.jsonl"):
            # split bytes: `str.splitlines` also splits at U+2028, which a prompt may contain
            for row in map(json.loads, store.get(key).splitlines()):
                yield SearchableImage(
                    image=Blob(sha256=row["sha256"], size=row["bytes"]),
                    prompt=row["prompt"],
                    seed=row["seed"],
                    model=row["model"],
                    weights=tuple(weights["digest"] for weights in row["weights"]),
                    job=key.split("/")[1],
                    size=(row["height"], row["width"]),
                )


def _set_images(store: Store) -> Iterator[SearchableImage]:
    """Images of runs and evaluations; the record at a set's prefix names the weights."""
    origins: dict[str, SampleOrigin | None] = {}
    for key in store.keys("images/"):
        prefix, _, rest = key.partition("/sets/")
        if not rest:
            continue
        if prefix not in origins:
            origins[prefix] = get_record(store, f"{prefix}/{ORIGIN_FILE}", SampleOrigin)
        origin, images = origins[prefix], get_record(store, key, ImageSet)
        if origin is not None and images is not None:
            yield from (_searchable(image, origin) for image in images.images)


def _searchable(image: Image, origin: SampleOrigin) -> SearchableImage:
    weights = tuple(digest for digest, _ in origin.weights)
    return SearchableImage(
        image=image.blob,
        prompt=image.prompt,
        seed=image.seed or 0,
        model=" + ".join(digest[:12] for digest in weights) or BASE,
        weights=weights,
        size=origin.size,
    )


def _ranked(
    config: Config, store: Store, query: SearchQuery, images: Sequence[SearchableImage]
) -> tuple[SearchHit, ...]:
    """Best first; equal ones by digest, so that the result is deterministic."""
    from dreambooth_core.metrics.embedding_index import EmbeddingIndex

    index = EmbeddingIndex(config, store)
    shown = [Image(name=f"{one.image.sha256}.png", blob=one.image, size=one.size) for one in images]
    if query.image is None:
        vector = index.of_text(query.text)
    else:
        vector = index.of_pictures([_decoded(config, query.image)])[0]
    return tuple(
        SearchHit(
            score=round(hit.cosine, 6),
            uri=f"{store.uri}/{blob_key(images[hit.index].image)}",
            **images[hit.index].model_dump(exclude={"weights"}),
        )
        for hit in index.nearest(vector, shown, query.top)
    )


def _nearest_photos(
    config: Config, store: Store, picture: "Picture", photos: Sequence[Image], top: int
) -> tuple[PhotoHit, ...]:
    from dreambooth_core.metrics.embedding_index import EmbeddingIndex
    from dreambooth_core.metrics.embeddings import StoredImages

    index = EmbeddingIndex(config, store)
    found = index.nearest(index.of_pictures([picture])[0], photos, top)
    pictures = StoredImages(store, tuple(photos[hit.index] for hit in found))
    return tuple(
        PhotoHit(
            score=round(hit.cosine, 6),
            bits=_differing_bits(picture, shown),
            uri=f"{store.uri}/{blob_key(photos[hit.index].blob)}",
            name=photos[hit.index].name,
            image=photos[hit.index].blob,
            size=photos[hit.index].size,
        )
        for hit, shown in zip(found, pictures, strict=True)
    )


def _differing_bits(sample: "Picture", photo: "Picture") -> int:
    """Of the difference hashes, the photo mirrored or not."""
    from PIL import ImageOps

    from dreambooth_core.vision.similarity import difference_hash

    ours = difference_hash(sample)
    views = (photo, ImageOps.mirror(photo))
    return min(int((ours != difference_hash(view)).sum()) for view in views)


def _photos(store: Store, runs: Runs) -> list[Image]:
    """Training photos of the models, or of all photo sets in the store; each once."""
    if runs:
        named = (instance_images(store, model) for model in runs.values() if model is not None)
    else:
        keys = filter(PHOTO_SET.fullmatch, store.keys("datasets/"))
        named = (get_record(store, key, ImageSet) for key in keys)
    found: dict[str, Image] = {}
    for photos in named:
        for image in photos.images if photos is not None else ():
            found.setdefault(image.blob.sha256, image)
    return list(found.values())


def _picture(config: Config, store: Store, sample: str) -> "Picture":
    """The generated image; raises `ConfigError` for an unknown or ambiguous digest."""
    from dreambooth_core.metrics.embeddings import StoredImages

    digest = sample.rpartition("/")[2]
    if Path(sample).is_file() or not DIGEST.fullmatch(digest):
        return _decoded(config, Path(sample))
    found = generated_images(store, lambda one: one.image.sha256.startswith(digest))
    if len(found) != 1:
        count = "no generated image has" if not found else f"{len(found)} generated images have"
        raise ConfigError(
            f"{count} the digest {digest} in {store.uri}: give an image file, or a digest that "
            "`dreambooth search` prints"
        )
    (one,) = found
    image = Image(name=f"{digest}.png", blob=one.image, size=one.size)
    return StoredImages(store, (image,))[0]


def _decoded(config: Config, path: Path) -> "Picture":
    """The image file under the config's limits for photos; raises `ImageRefused`."""
    from dreambooth_core.data import images
    from dreambooth_core.data.files import photo_bytes

    rules = config.dataset
    return images.decode(photo_bytes(path, rules.max_bytes), rules.max_pixels).image


def _config_of(config: Config | None, runs: Runs) -> Config:
    used = config or next((model.config for model in runs.values() if model is not None), None)
    if used is None:
        raise ConfigError(
            "search needs a store and a CLIP: name a registered model among --runs, or give --config"
        )
    return used
