"""Generated images by words: CLIP's view of each beside its view of the text (Radford et al. 2021).

What is searched are the image sets and the orders' manifests of a store; what CLIP saw of an image
is kept (see `embeddings`), so that only new images are looked at.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

from dreambooth_core.batch_sampling.models import ModelReference, find_model, weights_of_model
from dreambooth_core.config import Config
from dreambooth_core.config.base import NAME
from dreambooth_core.diffusion.sampling import ORIGIN_FILE, SampleOrigin
from dreambooth_core.errors import ConfigError
from dreambooth_core.reports import data_url
from dreambooth_core.reports.gallery import GalleryImage, gallery
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.blobs import blob_key, get_blob, get_record
from dreambooth_core.storage.records import Blob, Image, ImageSet, Record
from dreambooth_core.storage.stores import Store, open_store

BASE = "base"
"""What the untouched base's images are called, and asked for."""


class SearchableImage(Record):
    """A generated image that can be found."""

    image: Blob
    prompt: str
    seed: int
    model: str
    weights: tuple[str, ...]
    """Digests of what was put into the base."""
    order: str | None = None
    """Name of the order that it belongs to, if it was ordered."""
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
    order: str | None
    image: Blob
    size: tuple[int, int]


class SearchQuery(Record):
    """What is searched for, and where."""

    text: str
    runs: tuple[str, ...] = ()
    """Models (NAME, NAME@alias, NAME/version, CONFIG.yaml, `base`) and names of orders; () is all."""
    top: int = 20
    """At most so many images."""


def search(
    config: Config | None, work: Path, question: SearchQuery
) -> tuple[tuple[SearchHit, ...], Config]:
    """The images that fit the text best, best first, and the config whose CLIP and store were used.

    That is `config`, or else the config of the first run that is a model. Raises `ConfigError` when
    there is neither, and `ModelError` when its CLIP is missing.
    """
    members = _members(config, work, question.runs)
    home = config or next((m.config for m in members.values() if m is not None), None)
    if home is None:
        raise ConfigError(
            "search needs a store and a CLIP: name a registered model among --runs, or give --config"
        )
    with local_services(home):
        store = open_store(home.storage)
        wanted = _wanted(store, members)
        images = drawn_images(store, lambda one: wanted is None or _is_of(one, wanted))
        if not images:
            raise ConfigError(f"no generated images of {_said(question)} in {store.uri}")
        return _ranked(home, store, question, images), home


def drawn_images(
    store: Store, wanted: Callable[[SearchableImage], bool]
) -> tuple[SearchableImage, ...]:
    """The wanted images of a store, each once: as an order's if it is in one, which knows the names."""
    found: dict[str, SearchableImage] = {}
    for drawn in filter(wanted, chain(_of_orders(store), _of_sets(store))):
        found.setdefault(drawn.image.sha256, drawn)
    return tuple(found.values())


def page(config: Config, question: SearchQuery, hits: Sequence[SearchHit]) -> str:
    """A gallery of what was found."""
    with local_services(config):
        store = open_store(config.storage)
        exhibits = [
            GalleryImage(
                index=place,
                thumb=data_url(get_blob(store, hit.image)),
                prompt=hit.prompt,
                model=hit.model,
                seed=str(hit.seed),
                height=hit.size[0],
                width=hit.size[1],
                similarity=hit.score,
            )
            for place, hit in enumerate(hits)
        ]
    return gallery(f"“{question.text}”", f"The {len(hits)} images that fit best.", exhibits)


def _members(
    config: Config | None, work: Path, runs: Sequence[str]
) -> dict[str, ModelReference | None]:
    """Word -> its model; None for the base and for what can only be the name of an order."""
    found: dict[str, ModelReference | None] = {}
    for word in runs:
        try:
            found[word] = None if word == BASE else find_model(word, config, work)
        except ConfigError:
            if not re.fullmatch(NAME, word):  # no order is called so
                raise
            found[word] = None
    return found


def _wanted(
    store: Store, members: Mapping[str, ModelReference | None]
) -> tuple[set[str], set[str]] | None:
    """Digests of weights ("" for none) and names of orders that are asked for; None for everything.

    Raises `ConfigError` for a word that is neither.
    """
    if not members:
        return None
    digests, orders = set(), set()
    for word, member in members.items():
        if member is not None:
            digests.add(weights_of_model(store, member).digest)
        elif word == BASE:
            digests.add("")
        elif next(iter(store.keys(f"orders/{word}/")), None) is not None:
            orders.add(word)
        else:
            raise ConfigError(f"{word} is no registered model, config or order in {store.uri}")
    return digests, orders


def _is_of(drawn: SearchableImage, wanted: tuple[set[str], set[str]]) -> bool:
    digests, orders = wanted
    return drawn.order in orders or not digests.isdisjoint(drawn.weights or ("",))


def _of_orders(store: Store) -> Iterator[SearchableImage]:
    for key in store.keys("orders/"):
        if key.endswith("/manifest.jsonl"):
            # of bytes, since a prompt may hold what ends a line of text
            for row in map(json.loads, store.get(key).splitlines()):
                yield SearchableImage(
                    image=Blob(sha256=row["sha256"], size=row["bytes"]),
                    prompt=row["prompt"],
                    seed=row["seed"],
                    model=row["model"],
                    weights=tuple(put["digest"] for put in row["weights"]),
                    order=key.split("/")[1],
                    size=(row["height"], row["width"]),
                )


def _of_sets(store: Store) -> Iterator[SearchableImage]:
    """Of runs and evaluations; a set's model is what its prefix says that it was drawn by."""
    by: dict[str, SampleOrigin | None] = {}
    for key in store.keys("images/"):
        prefix, _, rest = key.partition("/sets/")
        if not rest:
            continue
        if prefix not in by:
            by[prefix] = get_record(store, f"{prefix}/{ORIGIN_FILE}", SampleOrigin)
        maker, made = by[prefix], get_record(store, key, ImageSet)
        if maker is not None and made is not None:
            yield from (_drawn(image, maker) for image in made.images)


def _drawn(image: Image, maker: SampleOrigin) -> SearchableImage:
    weights = tuple(digest for digest, _ in maker.weights)
    return SearchableImage(
        image=image.blob,
        prompt=image.prompt,
        seed=image.seed or 0,
        model=" + ".join(digest[:12] for digest in weights) or BASE,
        weights=weights,
        size=maker.size,
    )


def _ranked(
    config: Config, store: Store, question: SearchQuery, drawn: Sequence[SearchableImage]
) -> tuple[SearchHit, ...]:
    """Ties go by content, so that the answer is always the same."""
    from dreambooth_core.batch_sampling.manifest import embed_images
    from dreambooth_core.metrics.embeddings import ImageEmbedder

    images = [Image(name=f"{one.image.sha256}.png", blob=one.image, size=one.size) for one in drawn]
    scores = (
        embed_images(config, store, images, "clip")
        @ ImageEmbedder(config, store).read([question.text])[0]
    )
    best = sorted(zip(scores.tolist(), drawn, strict=True), key=_order)[: question.top]
    return tuple(
        SearchHit(
            score=round(score, 6),
            uri=f"{store.uri}/{blob_key(one.image)}",
            **one.model_dump(exclude={"weights"}),
        )
        for score, one in best
    )


def _order(found: tuple[float, SearchableImage]) -> tuple[float, str]:
    score, drawn = found
    return -score, drawn.image.sha256


def _said(question: SearchQuery) -> str:
    return ", ".join(question.runs) or "any run"
