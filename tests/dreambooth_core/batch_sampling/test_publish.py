"""Published jobs: flags, scores, manifests, gallery and contact sheet; and the search of images."""

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
from dreambooth_core.diffusion.sampling import ORIGIN_FILE, encode_png, sample_origin
from dreambooth_core.errors import ConfigError
from dreambooth_core.registry.resolve import find_runs
from dreambooth_core.storage.blobs import get_blob, image_set, put_blob
from dreambooth_core.storage.records import Image, PublishedJob
from dreambooth_core.vision.encoders import ImageEncoder
from tests.orders_for_real import SampledModels

PROMPTS = ["a {subject}", "a {class} on the beach"]


@pytest.fixture
def models(tiny_config) -> SampledModels:
    sampled = SampledModels(tiny_config)
    sampled.add("dog")
    return sampled


def _published(
    models: SampledModels, job: SamplingJob, out: Path | None = None
) -> PublishedJob | None:
    plan = models.plan(job)
    shards.draw(models.store, plan)
    return publish.publish(plan, models.store, out)


def test_the_files_of_a_job(models: SampledModels, tmp_path: Path):
    job = models.job(name="cards", prompts=PROMPTS, seeds=[3, 2**62], steps=1, scores=True)
    out = tmp_path / "out"
    published = _published(models, job, out)
    assert published is not None
    assert published.count == 4
    names = {"gallery.html", "contact_sheet.png", "manifest.jsonl", "manifest.parquet"}
    assert set(published.files) == names
    for name, uri in published.files.items():
        assert models.store.exists(uri.removeprefix(f"{models.store.uri}/"))
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
    again = _published(models, job)
    assert again == published


def test_nothing_is_published_while_images_are_missing(models: SampledModels):
    job = models.job(seeds=2, steps=1)
    plan = models.plan(job)
    shards.draw(models.store, plan, (1, 2))
    assert publish.publish(plan, models.store) is None
    assert "shard 1/2 has 1" in publish.announcement(plan, (1, 2))
    shards.draw(models.store, plan, (2, 2))
    assert publish.publish(plan, models.store) is not None


def test_scores_are_cosines_with_prompt_and_photos(models: SampledModels):
    photos = [
        Image(name=path.name, blob=put_blob(models.store, path), size=(64, 64))
        for path in sorted(models.config.subject.images.iterdir())
    ]
    known = image_set(models.store, "datasets/x", photos)
    models.models["dog"] = models.models["dog"].model_copy(update={"instance_uri": known.uri})
    job = models.job(prompts=PROMPTS, seeds=[1], steps=1, scores=True)
    plan = models.plan(job)
    shards.draw(models.store, plan)
    checked = check_images(plan, models.store, shards.finished(models.store, plan))
    rules = models.config.evaluation
    clip = ImageEncoder(rules.clip, None, rules.preprocessing)
    identity = ImageEncoder(rules.identity, None, rules.preprocessing)

    def opened(images: list[Image]) -> list[Pillow.Image]:
        return [
            Pillow.open(io.BytesIO(get_blob(models.store, one.blob))).convert("RGB")
            for one in images
        ]

    drawn = opened([Image(name="x", blob=image.image) for image in checked])
    texts = clip.clip_texts(["a robot", "a robot on the beach"])
    prompt = (clip.clip_images(drawn) * texts).sum(axis=1)
    subject = (identity.identity_images(drawn) @ identity.identity_images(opened(photos)).T).mean(
        axis=1
    )
    for index, image in enumerate(checked):
        assert image.scores["prompt_fidelity"] == pytest.approx(prompt[index], abs=1e-5)
        assert image.scores["subject_fidelity"] == pytest.approx(subject[index], abs=1e-5)


@pytest.mark.parametrize("method", ["dhash", "clip"])
def test_near_duplicates_are_flagged_and_kept(models: SampledModels, method: str):
    # a strength changed by 1e-6 gives a near-duplicate
    job = models.job(
        models=["dog", "dog:0.999999"], seeds=[1], steps=1, flags={"near_duplicates": method}
    )
    published = _published(models, job)
    assert published is not None
    assert (published.count, published.near_duplicates, published.unsafe) == (2, 1, 0)
    off = job.model_copy(update={"flags": job.flags.model_copy(update={"near_duplicates": None})})
    assert _published(models, off).near_duplicates == 0  # type: ignore[union-attr]


def test_a_manifest_without_rows_is_empty(file_store):
    assert manifests(file_store, ()) == {"manifest.jsonl": b""}


def _drawn(models: SampledModels, colours: dict[str, str]) -> None:
    """Image sets of plain colours, recorded as drawn by the base and by a model."""
    dog = models.plan(models.job()).mixes["dog/1"].weights
    for name, weights in {"base": (), "dog": dog}.items():
        by = sample_origin(models.config, weights)
        images = []
        for place, (colour, prompt) in enumerate(colours.items()):
            if name == "dog" and place == 0:
                continue
            png = encode_png(Pillow.new("RGB", (32, 32), colour), f"{name}: {prompt}", place)
            blob = put_blob(models.store, png)
            images.append(
                Image(name=f"{place}.png", blob=blob, prompt=f"{name}: {prompt}", seed=place)
            )
        image_set(models.store, f"{by.prefix}/sets", images)
        models.store.put(f"{by.prefix}/{ORIGIN_FILE}", by.model_dump_json().encode())


def test_a_text_finds_images(models: SampledModels, tmp_path: Path):
    colours = {"red": "fire", "blue": "sea", "green": "grass"}
    _drawn(models, colours)
    query = search.SearchQuery(text="the sea", top=4)
    hits, used = search.search(models.config, {}, query)
    assert used == models.config
    assert len(hits) == 4
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    clip = ImageEncoder(models.config.evaluation.clip, None, models.config.evaluation.preprocessing)
    text = clip.clip_texts(["the sea"])[0]
    for hit in hits:
        png = Pillow.open(Path(hit.uri.removeprefix("file://")))
        assert hit.score == pytest.approx(float(clip.clip_images([png])[0] @ text), abs=1e-5)
    best = float(
        np.max(clip.clip_images([Pillow.new("RGB", (32, 32), colour) for colour in colours]) @ text)
    )
    assert scores[0] == pytest.approx(best, abs=1e-5)
    runs = find_runs(["base"], models.config, tmp_path)
    of_base, _ = search.search(models.config, runs, query)
    assert {hit.model for hit in of_base} == {"base"}
    assert len(of_base) == 3
    page = search.page(models.config, query, hits)
    assert "“the sea”" in page
    with pytest.raises(ConfigError, match="nowhere is no registered model, config or sampling job"):
        search.search(models.config, {"nowhere": None}, query)
    with pytest.raises(ConfigError, match="search needs a store and a CLIP"):
        search.search(None, {}, query)


def test_jobs_are_searched_by_name_and_images_embedded_once(models: SampledModels, monkeypatch):
    _published(models, models.job(name="cards", seeds=[1, 2], steps=1))
    _published(models, models.job(name="others", seeds=[2, 3], steps=1))
    found = search.generated_images(models.store, lambda drawn: True)
    assert len(found) == 3
    assert {drawn.model for drawn in found} == {"dog/1"}
    query = search.SearchQuery(text="a")
    hits, _ = search.search(models.config, {"others": None}, query)
    assert {hit.job for hit in hits} == {"others"}
    assert {hit.seed for hit in hits} == {2, 3}
    # embeddings are cached: the same query runs no encoder on images
    monkeypatch.setattr(ImageEncoder, "clip_images", lambda *_: pytest.fail("embedded again"))
    again, _ = search.search(models.config, {"others": None}, query)
    assert again == hits
