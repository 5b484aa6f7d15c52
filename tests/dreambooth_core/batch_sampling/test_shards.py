"""Sampling jobs drawn in shards, after kills and from mixes: each image once, with its sidecar."""

import io
import multiprocessing
import os
import signal
import time
from typing import Any

import pytest
from PIL import Image as Pillow

from dreambooth_core.batch_sampling import shards
from dreambooth_core.batch_sampling.shards import ProgressRate, draw, finished, shard_of
from dreambooth_core.diffusion import parallel_sampling, pipelines, sampling
from dreambooth_core.errors import ConfigError
from dreambooth_core.storage.blobs import get_blob
from tests.orders_for_real import SampledModels


@pytest.fixture
def models(tiny_config) -> SampledModels:
    sampled = SampledModels(tiny_config)
    sampled.add("dog")
    return sampled


def test_the_sidecar_of_an_image_is_enough_to_draw_it_again(models: SampledModels):
    job = models.job(prompts=["a {subject}", "a {class}"], seeds=[1, 2], guidance=[2, 4], steps=1)
    plan = models.plan(job)
    result = draw(models.store, plan)
    assert (result.made, result.found, result.missing) == (8, 0, 0)
    assert result.images_per_second > 0
    images = finished(models.store, plan)
    assert [image.index for image in images] == list(range(8))
    first = images[0]
    weights = plan.mixes["dog/1"].weights[0].weights
    assert first.prompt == "a sks robot"
    assert first.weights == (
        shards.AppliedWeights(name="dog/1", digest=weights.digest, strength=1.0),
    )
    assert (first.sampler.guidance_scale, first.sampler.inference_steps) == (2.0, 1)
    # draw again by the sidecar alone
    config = models.models["dog"].config.model_copy(update={"sampler": first.sampler})
    drawing = parallel_sampling.sampling_settings(config, models.store, weights, first.size)
    request = (first.prompt, first.seed)
    (again,) = sampling.generate(drawing.load(), drawing, [request], None)
    assert first.image is not None
    with Pillow.open(io.BytesIO(get_blob(models.store, first.image))) as image:
        assert image.tobytes() == again.tobytes()


def test_a_second_run_and_a_longer_job_draw_only_missing_images(models: SampledModels):
    plan = models.plan(models.job(seeds=2))
    draw(models.store, plan)
    assert draw(models.store, plan).made == 0
    longer = draw(models.store, models.plan(models.job(seeds=3)))
    assert (longer.made, longer.found) == (1, 2)


def test_a_job_reuses_the_images_of_a_run(models: SampledModels):
    config = models.models["dog"].config
    weights = models.plan(models.job()).mixes["dog/1"].weights[0].weights
    parallel_sampling.sample(config, models.store, weights)
    job = models.job(prompts=config.sample.prompts, seeds=config.sample.seeds, seed=config.seed)
    assert draw(models.store, models.plan(job)).made == 0


def test_shards_may_be_drawn_in_any_order_and_again(models: SampledModels):
    plan = models.plan(models.job(seeds=[1, 2, 3]))
    left = [draw(models.store, plan, shard).missing for shard in ((3, 3), (1, 3), (2, 3))]
    assert left == [2, 1, 0]
    sharded = finished(models.store, plan)
    assert draw(models.store, plan).made == 0
    for key in [*models.store.keys("jobs/"), *models.store.keys("images/")]:
        models.store.delete(key)
    assert draw(models.store, plan).made == 3
    assert finished(models.store, plan) == sharded


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_shards_are_counted_from_one(text: str):
    assert shard_of("2/8") == (2, 8)
    with pytest.raises(ConfigError, match="--shard takes K/N"):
        shard_of(text)


def test_a_model_is_loaded_once_for_all_its_settings(models: SampledModels, monkeypatch):
    loaded = []

    def counted(*inputs: Any) -> Any:
        loaded.append(inputs)
        return pipelines.load_model(*inputs)

    monkeypatch.setattr(shards, "load_model", counted)
    schedulers = [None, "DDIMScheduler"]
    job = models.job(
        models=["dog", "dog:0.5"], guidance=[2, 3], noise_schedulers=schedulers, steps=1, seeds=[1]
    )
    plan = models.plan(job)
    assert draw(models.store, plan).made == 8
    assert len(loaded) == 2
    assert draw(models.store, plan).made == 0
    assert len(loaded) == 2
    blobs = [image.image for image in finished(models.store, plan)]
    assert len(set(blobs)) == 8


def test_a_mix_depends_on_the_order_and_strengths_of_its_adapters(models: SampledModels):
    models.add("hat", "dora")
    mixes = ["dog", "dog:0", "dog + hat", "hat + dog", "dog:0.5 + hat"]
    plan = models.plan(models.job(models=mixes, seeds=[1]))
    draw(models.store, plan)
    images = finished(models.store, plan)
    assert [image.model for image in images] == [
        "dog/1",
        "dog/1:0",
        "dog/1 + hat/1",
        "hat/1 + dog/1",
        "dog/1:0.5 + hat/1",
    ]
    assert len({image.image for image in images}) == 5
    base = parallel_sampling.sampling_settings(models.config, models.store, None)
    request = (images[1].prompt, images[1].seed)
    prefix = sampling.images_prefix(models.config, None)
    ((_, plain, _),) = sampling.each_image(models.store, prefix, base, [request])
    assert images[1].image == plain.blob


def test_models_that_cannot_mix_are_refused_before_anything_is_drawn(models: SampledModels):
    models.add("whole", "full")
    models.plan(models.job(models="whole"))
    for mix in ("whole:0.5", "dog + whole"):
        with pytest.raises(ConfigError, match=r"whole in .* is a full training"):
            models.plan(models.job(models=mix))
    with pytest.raises(ConfigError, match="size 36 x 32 must be multiples of 8"):
        models.plan(models.job(size=[36, 32]))
    assert not list(models.store.keys("images/"))


def test_an_unsupported_noise_scheduler_is_refused_before_anything_is_drawn(models: SampledModels):
    job = models.job(noise_schedulers=[None, "FlowMatchEulerDiscreteScheduler"])
    with pytest.raises(ConfigError, match="FlowMatchEulerDiscreteScheduler cannot sample"):
        models.plan(job)
    assert not list(models.store.keys("images/"))


def test_sigkill_loses_no_committed_image(models: SampledModels):
    plan = models.plan(models.job(seeds=10, steps=2))
    worker = multiprocessing.get_context("spawn").Process(target=draw, args=(models.store, plan))
    worker.start()
    deadline = time.monotonic() + 300
    while len(committed_keys := list(models.store.keys(f"{plan.prefix}/images/"))) < 3:
        assert time.monotonic() < deadline
        assert worker.is_alive()
        time.sleep(0.001)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    committed = {key: models.store.get(key) for key in committed_keys}
    after = len(list(models.store.keys(f"{plan.prefix}/images/")))
    assert 3 <= after < 10
    result = draw(models.store, plan)
    assert result.missing == 0
    assert result.made <= 10 - after
    images = finished(models.store, plan)
    assert len({image.image for image in images}) == 10
    for key, sidecar in committed.items():
        assert models.store.get(key) == sidecar
    for image in images:
        assert image.image is not None
        get_blob(models.store, image.image)  # checks its digest


def test_the_rate_counts_drawn_images_only():
    reports: list[tuple[int, int, str]] = []
    now = iter([10.0, 30.0, 50.0])
    rate = ProgressRate(
        total=125, found=1, progress=lambda *report: reports.append(report), clock=lambda: next(now)
    )
    for is_new in (False, True, True):
        rate.committed(is_new)
    assert reports == [(2, 125, "images"), (3, 125, "images"), (4, 125, "images")]
    # a forward has ended, and the images of the next one are not committed yet
    rate.forward(2)
    for _ in range(2):
        rate.committed(True)
    assert reports[-1] == (6, 125, "images, 0.10 images/s, 19 min 50 s left")
    # images of other processes count before they are committed here
    rate.forward(6)
    assert reports[-1] == (10, 125, "images, 0.20 images/s, 9 min 35 s left")
