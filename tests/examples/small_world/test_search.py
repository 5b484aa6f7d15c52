"""Text search with the shipped CLIP over renders with known subject and background."""

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from dreambooth_core.batch_sampling.search import SearchQuery, search
from dreambooth_core.config import Config, Storage, load_config
from dreambooth_core.data.images import encode_png
from dreambooth_core.diffusion.sampling import ORIGIN_FILE, sample_origin
from dreambooth_core.storage.blobs import image_set, put_blob
from dreambooth_core.storage.records import Image
from dreambooth_core.storage.stores import open_store
from examples.small_world.render import render
from examples.small_world.world import BACKGROUNDS, random_identity, random_scene

SCENES = ("grass", "snow", "beach", "night", "desert", "city", "water", "wood")
NOUNS = ("dog", "robot", "mug")


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
    return config


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
