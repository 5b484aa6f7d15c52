"""Search with the shipped CLIP over renders with known subject and background."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from dreambooth_core.batch_sampling.search import (
    SearchQuery,
    generated_images,
    nearest_photos,
    search,
)
from dreambooth_core.config import Config, Storage, load_config
from dreambooth_core.data.images import encode_png
from dreambooth_core.diffusion.sampling import ORIGIN_FILE, sample_origin
from dreambooth_core.errors import ConfigError
from dreambooth_core.metrics.embedding_index import EmbeddingIndex
from dreambooth_core.metrics.embeddings import ImageEmbedder
from dreambooth_core.storage.blobs import get_record, image_set, put_blob
from dreambooth_core.storage.records import Image, ImageSet
from dreambooth_core.storage.stores import open_store
from dreambooth_core.storage.tensor_cache import TensorCache
from examples.small_world.render import render
from examples.small_world.world import BACKGROUNDS, Identity, random_identity, random_scene

SCENES = ("grass", "snow", "beach", "night", "desert", "city", "water", "wood")
NOUNS = ("dog", "robot", "mug")
PHOTOS = 3
"""Photos of each subject."""
QUERY = SearchQuery(text="a robot on the beach", top=24)
KILLED = """
import os, signal, sys
from pathlib import Path
from dreambooth_core.batch_sampling.search import SearchQuery, search
from dreambooth_core.config import load_config
from dreambooth_core.storage.stores import file

method, prefix = sys.argv[2:]
real = getattr(file.FileStore, method)

def killing(store, key, *rest):
    if key.startswith(prefix):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(store, key, *rest)

setattr(file.FileStore, method, killing)
search(load_config(Path(sys.argv[1])), {}, SearchQuery(text="a robot on the beach"))
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A store with every noun on every background, recorded as images of the base without prompts."""
    folder = tmp_path_factory.mktemp("search")
    shipped = load_config(Path("examples/small_world/config.yaml"))
    storage = Storage(uri=f"file://{folder / 'store'}", endpoint=None)
    paths = shipped.paths.model_copy(update={"work": folder / "work"})
    config = shipped.model_copy(update={"storage": storage, "paths": paths})
    store, by = open_store(storage), sample_origin(config, ())
    pairs = [(noun, background) for noun in NOUNS for background in SCENES]
    images = []
    for number, (noun, background) in enumerate(pairs):
        draw = random.Random(f"search/{number}")
        scene = random_scene(draw, background, accessory_share=0)
        blob = put_blob(store, encode_png(render(random_identity(draw, noun), scene)))
        images.append(Image(name=f"{noun}-{background}.png", blob=blob, seed=number, size=(64, 64)))
    image_set(store, f"{by.prefix}/sets", images)
    store.put(f"{by.prefix}/{ORIGIN_FILE}", by.model_dump_json().encode())
    photos = []
    for noun in NOUNS:
        for number in range(PHOTOS):
            draw = random.Random(f"photo/{noun}/{number}")
            blob = put_blob(store, encode_png(render(subject(noun), random_scene(draw))))
            photos.append(Image(name=f"{noun}-{number}.png", blob=blob, size=(64, 64)))
    image_set(store, "datasets", photos)
    return config


def subject(noun: str) -> Identity:
    return random_identity(random.Random(f"subject/{noun}"), noun)


@pytest.fixture
def pictures(tmp_path: Path) -> dict[tuple[str, str], Path]:
    """Noun and background -> a file with another subject of that class on that background."""
    found = {}
    for noun in NOUNS:
        for background in SCENES:
            draw = random.Random(f"picture/{noun}/{background}")
            scene = random_scene(draw, background, accessory_share=0)
            found[noun, background] = tmp_path / f"{noun}-{background}.png"
            render(random_identity(draw, noun), scene).save(found[noun, background])
    return found


def index_records(config: Config) -> list[Path]:
    return [*Path(config.storage.uri.removeprefix("file://"), "indexes").glob("*.json")]


def found(config: Config, text: str, top: int) -> Sequence[tuple[str, str]]:
    """Noun and background of the hits, best first; an image's seed is its index."""
    hits, _ = search(config, {}, SearchQuery(text=text, top=top))
    pairs = [(noun, background) for noun in NOUNS for background in SCENES]
    return [pairs[hit.seed] for hit in hits]


@pytest.mark.parametrize("background", SCENES)
def test_a_background_phrase_finds_its_images(config: Config, background: str) -> None:
    best = found(config, BACKGROUNDS[background], len(NOUNS))
    assert {found_background for _, found_background in best} == {background}, best


def test_subject_and_background_of_a_query_both_count(config: Config) -> None:
    assert found(config, "a robot on the beach", 1) == [("robot", "beach")]
    assert found(config, "a mug on the beach", 1) == [("mug", "beach")]


def test_photos_find_images_of_their_class_and_background(
    config: Config, pictures: dict[tuple[str, str], Path]
) -> None:
    store = open_store(config.storage)
    index = EmbeddingIndex(config, store)
    found = generated_images(store, lambda one: True)
    images = [Image(name=one.image.sha256, blob=one.image) for one in found]
    rows = index.of_pictures([Pillow.open(path) for path in pictures.values()])
    best = [found[index.nearest(row, images, 1)[0].index].seed for row in rows]
    right = [seed == number for number, seed in enumerate(best)]
    assert len(right) == 24
    assert np.mean(right) >= 0.6, "chance is 1 of 24"
    hits, _ = search(config, {}, SearchQuery(image=pictures["dog", "snow"], top=1))
    assert hits[0].seed == best[SCENES.index("snow")]


def test_samples_find_photos_of_their_subject(config: Config, tmp_path: Path) -> None:
    store = open_store(config.storage)
    index, right = EmbeddingIndex(config, store), []
    (key,) = store.keys("datasets/")
    photos = get_record(store, key, ImageSet).images
    samples = [
        render(
            subject(noun), random_scene(random.Random(f"sample/{noun}/{background}"), background)
        )
        for noun in NOUNS
        for background in SCENES
    ]
    for number, row in enumerate(index.of_pictures(samples)):
        hit = index.nearest(row, photos, 1)[0]
        right.append(photos[hit.index].name.startswith(NOUNS[number // len(SCENES)]))
    assert np.mean(right) >= 0.6, "chance is 1 of 3"
    samples[-1].save(tmp_path / "sample.png")
    assert (
        nearest_photos(config, {}, str(tmp_path / "sample.png"), 1)[0][0].name
        == photos[hit.index].name
    )


def test_a_sample_is_named_by_its_digest_or_uri(config: Config) -> None:
    hit = search(config, {}, SearchQuery(text="a dog", top=1))[0][0]
    digest = hit.image.sha256
    by_digest, _ = nearest_photos(config, {}, digest[:12], 3)
    assert nearest_photos(config, {}, hit.uri, 3)[0] == by_digest
    assert [one.score for one in by_digest] == sorted(one.score for one in by_digest)[::-1]
    assert {one.bits <= 6 for one in by_digest} == {False}
    with pytest.raises(ConfigError, match="no generated image has the digest 00000000"):
        nearest_photos(config, {}, "00000000", 3)


def test_scores_equal_the_cosines_of_all_embeddings(config: Config) -> None:
    hits, _ = search(config, {}, QUERY)
    embedder = ImageEmbedder(config, open_store(config.storage))
    images = [Image(name=hit.image.sha256, blob=hit.image) for hit in hits]
    rows = embedder.embed(images, "dog", [("clip", "whole")]).get(("clip", "whole"))
    cosines = rows @ embedder.embed_texts([QUERY.text])[0]
    assert [hit.score for hit in hits] == [round(float(cosine), 6) for cosine in cosines]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_deleted_or_damaged_index_is_rebuilt_equal_from_cached_embeddings(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = search(config, {}, QUERY)
    computed = []
    fetch = TensorCache.fetch
    monkeypatch.setattr(
        TensorCache,
        "fetch",
        lambda cache, keys, compute: computed.append(made := fetch(cache, keys, compute)) or made,
    )
    (record,) = index_records(config)
    root = Path(config.storage.uri.removeprefix("file://"))
    blob = json.loads(record.read_bytes())["blob"]["sha256"]
    path = root / "blobs/sha256" / blob[:2] / blob[2:4] / blob
    for damage in (path.unlink, record.unlink, lambda: path.write_bytes(b"half")):
        damage()
        assert search(config, {}, QUERY) == before
        assert record.is_file()
    assert sum(one.made for one in computed) == 0, "nothing is embedded again"
    assert search(config, {}, QUERY) == before


def test_only_new_images_are_embedded(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    search(config, {}, QUERY)
    embedded: list[int] = []
    embed = ImageEmbedder.embed
    monkeypatch.setattr(
        ImageEmbedder,
        "embed",
        lambda self, images, *rest: embedded.append(len(images)) or embed(self, images, *rest),
    )
    search(config, {}, QUERY)
    assert embedded == []
    store, by = open_store(config.storage), sample_origin(config, ())
    scene = random_scene(random.Random("new"), "beach", accessory_share=0)
    blob = put_blob(store, encode_png(render(random_identity(random.Random("new"), "dog"), scene)))
    image_set(store, f"{by.prefix}/sets", [Image(name="new.png", blob=blob, size=(64, 64), seed=0)])
    hits, _ = search(config, {}, QUERY.model_copy(update={"top": 100}))
    assert embedded == [1]
    assert len(hits) == 25


@pytest.mark.parametrize(("method", "prefix"), [("put", "blobs/"), ("put_if", "indexes/")])
def test_a_process_killed_while_it_stores_the_index_leaves_the_previous_one(
    config: Config, tmp_path: Path, method: str, prefix: str
) -> None:
    expected = search(config, {}, QUERY)
    path = tmp_path / "config.yaml"
    path.write_text(config.model_dump_json())
    (record,) = index_records(config)
    kept = record.read_bytes()
    record.unlink()
    command = [sys.executable, "-c", KILLED, str(path), method, prefix]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert index_records(config) == []
    assert search(config, {}, QUERY) == expected
    assert json.loads(record.read_bytes())["images"] == json.loads(kept)["images"]
