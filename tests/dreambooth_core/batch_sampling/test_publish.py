"""Whole orders: flags, scores, manifests anyone can read, a gallery and a sheet; and their search."""

import io
import json
from pathlib import Path

import numpy as np
import pandas
import pytest
from PIL import Image as Pillow

from dreambooth_core.batch_sampling import publish, search, shards
from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.batch_sampling.manifest import check_images, manifests
from dreambooth_core.config import Detector
from dreambooth_core.diffusion.sampling import ORIGIN_FILE, encode_png, sample_origin
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.blobs import get_blob, image_set, put_blob
from dreambooth_core.storage.records import Image
from dreambooth_core.vision.encoders import ImageEncoder
from tests.orders_for_real import Ordered

PROMPTS = ["a {subject}", "a {class} on the beach"]


@pytest.fixture
def shop(tiny_config) -> Ordered:
    made = Ordered(tiny_config)
    made.add("dog")
    return made


def _fulfilled(
    shop: Ordered, order: SamplingJob, out: Path | None = None
) -> publish.PublishedJob | None:
    plan = shop.plan(order)
    shards.draw(shop.store, plan)
    return publish.publish(order, plan, shop.members, shop.store, out)


def test_the_files_of_an_order(shop: Ordered, tmp_path: Path):
    order = shop.order(name="cards", prompts=PROMPTS, seeds=[3, 2**62], steps=1, scores=True)
    out = tmp_path / "out"
    published = _fulfilled(shop, order, out)
    assert published is not None
    assert published.count == 4
    names = {"gallery.html", "contact_sheet.png", "manifest.jsonl", "manifest.parquet"}
    assert set(published.files) == names
    for name, uri in published.files.items():
        assert shop.store.exists(uri.removeprefix(f"{shop.store.uri}/"))
        assert (out / name).is_file()
    rows = pandas.read_json(out / "manifest.jsonl", lines=True, dtype={"seed": "int64"})
    assert rows.equals(rows.sort_values("index"))
    assert rows["prompt"].tolist() == ["a sks robot"] * 2 + ["a robot on the beach"] * 2
    assert rows["seed"].tolist() == [3, 2**62] * 2
    typed = pandas.read_parquet(out / "manifest.parquet")
    assert typed["seed"].tolist() == rows["seed"].tolist()
    assert typed["prompt_fidelity"].tolist() == pytest.approx(rows["prompt_fidelity"].tolist())
    assert typed["noise_scheduler"].isna().all()
    for row in rows.itertuples():
        png = (out / "images" / f"{row.index:06d}.png").read_bytes()
        assert Path(row.uri.removeprefix("file://")).read_bytes() == png
        sidecar = json.loads((out / "images" / f"{row.index:06d}.json").read_text())
        assert (sidecar["prompt"], sidecar["seed"]) == (row.prompt, row.seed)
    again = _fulfilled(shop, order)
    assert again == published


def test_nothing_is_published_while_images_are_missing(shop: Ordered):
    order = shop.order(seeds=2, steps=1)
    plan = shop.plan(order)
    shards.draw(shop.store, plan, (1, 2))
    assert publish.publish(order, plan, shop.members, shop.store) is None
    assert "shard 1/2 has 1" in publish.announced(plan, (1, 2))
    shards.draw(shop.store, plan, (2, 2))
    assert publish.publish(order, plan, shop.members, shop.store) is not None


def test_scores_are_cosines_with_prompt_and_photos(shop: Ordered, tmp_path: Path, monkeypatch):
    from dreambooth_core.batch_sampling import manifest

    photos = [
        Image(name=path.name, blob=put_blob(shop.store, path), size=(64, 64))
        for path in sorted(shop.config.subject.images.iterdir())
    ]
    known = image_set(shop.store, "datasets/x", photos)
    monkeypatch.setattr(manifest, "photos_of", lambda store, member: known)
    order = shop.order(prompts=PROMPTS, seeds=[1], steps=1, scores=True)
    plan = shop.plan(order)
    shards.draw(shop.store, plan)
    shots = check_images(order, plan, shop.members, shop.store, shards.finished(shop.store, plan))
    rules = shop.config.evaluation
    clip = ImageEncoder(rules.clip, None, rules.preprocessing)
    eye = ImageEncoder(rules.identity, None, rules.preprocessing)

    def opened(images: list[Image]) -> list[Pillow.Image]:
        return [
            Pillow.open(io.BytesIO(get_blob(shop.store, one.blob))).convert("RGB") for one in images
        ]

    drawn = opened([Image(name="x", blob=shot.image) for shot in shots])
    texts = clip.clip_texts(["a robot", "a robot on the beach"])
    prompt = (clip.clip_images(drawn) * texts).sum(axis=1)
    subject = (eye.identity_images(drawn) @ eye.identity_images(opened(photos)).T).mean(axis=1)
    for place, shot in enumerate(shots):
        assert shot.scores["prompt_fidelity"] == pytest.approx(prompt[place], abs=1e-5)
        assert shot.scores["subject_fidelity"] == pytest.approx(subject[place], abs=1e-5)


@pytest.mark.parametrize("way", ["dhash", "clip"])
def test_repeats_are_flagged_and_kept(shop: Ordered, way: str):
    # a change of strength by 1e-6 is not to be seen
    order = shop.order(
        models=["dog", "dog:0.999999"], seeds=[1], steps=1, flags={"near_duplicates": way}
    )
    published = _fulfilled(shop, order)
    assert published is not None
    assert (published.count, published.near_duplicates, published.unsafe) == (2, 1, 0)
    off = order.model_copy(
        update={"flags": order.flags.model_copy(update={"near_duplicates": None})}
    )
    assert _fulfilled(shop, off).near_duplicates == 0  # type: ignore[union-attr]


def test_a_manifest_without_rows_is_empty(file_store):
    assert manifests(file_store, ()) == {"manifest.jsonl": b""}


def _drawn(shop: Ordered, colours: dict[str, str]) -> None:
    """Images of one colour, as the base and a model are said to have drawn them."""
    dog = shop.plan(shop.order()).mixtures["dog/1"].blend
    for name, blend in {"base": (), "dog": dog}.items():
        by = sample_origin(shop.config, blend)
        images = []
        for place, (colour, prompt) in enumerate(colours.items()):
            if name == "dog" and place == 0:
                continue
            png = encode_png(Pillow.new("RGB", (32, 32), colour), f"{name}: {prompt}", place)
            blob = put_blob(shop.store, png)
            images.append(
                Image(name=f"{place}.png", blob=blob, prompt=f"{name}: {prompt}", seed=place)
            )
        image_set(shop.store, f"{by.prefix}/sets", images)
        shop.store.put(f"{by.prefix}/{ORIGIN_FILE}", by.model_dump_json().encode())


def test_words_find_images(shop: Ordered, tmp_path: Path):
    colours = {"red": "fire", "blue": "sea", "green": "grass"}
    _drawn(shop, colours)
    question = search.SearchQuery(text="the sea", top=4)
    hits, home = search.search(shop.config, tmp_path, question)
    assert home == shop.config
    assert len(hits) == 4
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    clip = ImageEncoder(shop.config.evaluation.clip, None, shop.config.evaluation.preprocessing)
    text = clip.clip_texts(["the sea"])[0]
    for hit in hits:
        png = Pillow.open(Path(hit.uri.removeprefix("file://")))
        assert hit.score == pytest.approx(float(clip.clip_images([png])[0] @ text), abs=1e-5)
    best = float(
        np.max(clip.clip_images([Pillow.new("RGB", (32, 32), colour) for colour in colours]) @ text)
    )
    assert scores[0] == pytest.approx(best, abs=1e-5)
    of_base, _ = search.search(
        shop.config, tmp_path, question.model_copy(update={"runs": ("base",)})
    )
    assert {hit.model for hit in of_base} == {"base"}
    assert len(of_base) == 3
    page = search.page(shop.config, question, hits)
    assert "“the sea”" in page
    with pytest.raises(ConfigError, match="nowhere is no registered model, config or order"):
        search.search(shop.config, tmp_path, question.model_copy(update={"runs": ("nowhere",)}))
    with pytest.raises(ConfigError, match="search needs a store and a CLIP"):
        search.search(None, tmp_path, question)


def test_orders_are_searched_by_name_and_seen_once(shop: Ordered, tmp_path: Path, monkeypatch):
    _fulfilled(shop, shop.order(name="cards", seeds=[1, 2], steps=1))
    _fulfilled(shop, shop.order(name="others", seeds=[2, 3], steps=1))
    found = search.drawn_images(shop.store, lambda drawn: True)
    assert len(found) == 3
    assert {drawn.model for drawn in found} == {"dog/1"}
    question = search.SearchQuery(text="a", runs=("others",))
    hits, _ = search.search(shop.config, tmp_path, question)
    assert {hit.order for hit in hits} == {"others"}
    assert {hit.seed for hit in hits} == {2, 3}
    # what CLIP saw is kept: without encoders the same question has the same answer
    blind = shop.config.evaluation.model_copy(update={"detector": Detector()})
    monkeypatch.setattr(ImageEncoder, "clip_images", lambda *_: pytest.fail("looked again"))
    again, _ = search.search(
        shop.config.model_copy(update={"evaluation": blind}), tmp_path, question
    )
    assert again == hits
