"""Search of generated images by text: cosine of CLIP's embeddings (Radford et al. 2021).

The store's image sets and the manifests of its sampling jobs are searched. Embeddings are cached
(see `embeddings`): only new images are embedded.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain

from dreambooth_core.batch_sampling.models import weights_of_model
from dreambooth_core.config import Config
from dreambooth_core.data.contact_sheets import data_url
from dreambooth_core.diffusion.sampling import ORIGIN_FILE, SampleOrigin
from dreambooth_core.errors import ConfigError
from dreambooth_core.reports.gallery import GalleryImage, gallery
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.blobs import blob_key, get_blob, get_record
from dreambooth_core.storage.records import BASE, Blob, Image, ImageSet, ModelReference, Record
from dreambooth_core.storage.stores import Store, open_store

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
    """A text and the number of images wanted."""

    text: str
    top: int = 20


def search(
    config: Config | None, runs: Runs, query: SearchQuery
) -> tuple[tuple[SearchHit, ...], Config]:
    """The images that match the text best, best first, and the config whose CLIP and store were used.

    Only images of `runs` are searched, or all when it is empty. The config is `config`, or that of
    the first model of `runs`. Raises `ConfigError` when there is neither, and when nothing can be
    searched; `ModelError` when CLIP is missing.
    """
    used = config or next((model.config for model in runs.values() if model is not None), None)
    if used is None:
        raise ConfigError(
            "search needs a store and a CLIP: name a registered model among --runs, or give --config"
        )
    with local_services(used):
        store = open_store(used.storage)
        wanted = _wanted(store, runs)
        images = generated_images(store, lambda image: wanted is None or _matches(image, wanted))
        if not images:
            names = ", ".join(runs) or "any run"
            raise ConfigError(f"no generated images of {names} in {store.uri}")
        return _ranked(used, store, query, images), used


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
    return gallery(f"“{query.text}”", f"The {len(hits)} images that fit best.", images)


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
    """Best first; ties are broken by digest, so that the result is deterministic."""
    from dreambooth_core.batch_sampling.manifest import embed_images
    from dreambooth_core.metrics.embeddings import ImageEmbedder

    shown = [Image(name=f"{one.image.sha256}.png", blob=one.image, size=one.size) for one in images]
    scores = (
        embed_images(config, store, shown, "clip")
        @ ImageEmbedder(config, store).embed_texts([query.text])[0]
    )
    ranked = sorted(
        zip(scores.tolist(), images, strict=True), key=lambda hit: (-hit[0], hit[1].image.sha256)
    )
    return tuple(
        SearchHit(
            score=round(score, 6),
            uri=f"{store.uri}/{blob_key(image.image)}",
            **image.model_dump(exclude={"weights"}),
        )
        for score, image in ranked[: query.top]
    )
