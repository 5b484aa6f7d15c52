"""Orders drawn: in shards, after kills, from mixtures; each image once, with its sidecar."""

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
from tests.orders_for_real import Ordered


@pytest.fixture
def shop(tiny_config) -> Ordered:
    made = Ordered(tiny_config)
    made.add("dog")
    return made


def test_every_image_has_a_sidecar_of_all_that_made_it(shop: Ordered):
    order = shop.order(prompts=["a {subject}", "a {class}"], seeds=[1, 2], guidance=[2, 4], steps=1)
    plan = shop.plan(order)
    tally = draw(shop.store, plan)
    assert (tally.made, tally.found, tally.missing) == (8, 0, 0)
    assert tally.images_per_second > 0
    pictures = finished(shop.store, plan)
    assert [picture.index for picture in pictures] == list(range(8))
    first = pictures[0]
    weights = plan.mixtures["dog/1"].blend[0].weights
    assert first.prompt == "a sks robot"
    assert first.weights == (
        shards.AppliedWeights(name="dog/1", digest=weights.digest, strength=1.0),
    )
    assert (first.sampler.guidance_scale, first.sampler.inference_steps) == (2.0, 1)
    # what the sidecar says is enough to draw the image again
    config = shop.members["dog"].config.model_copy(update={"sampler": first.sampler})
    drawing = parallel_sampling.sampling_settings(config, shop.store, weights, first.size)
    request = (first.prompt, first.seed)
    (again,) = sampling.generate(drawing.load(), drawing, [request], None)
    assert first.image is not None
    with Pillow.open(io.BytesIO(get_blob(shop.store, first.image))) as image:
        assert image.tobytes() == again.tobytes()


def test_a_second_run_and_a_longer_order_draw_only_what_is_missing(shop: Ordered):
    plan = shop.plan(shop.order(seeds=2))
    draw(shop.store, plan)
    assert draw(shop.store, plan).made == 0
    longer = draw(shop.store, shop.plan(shop.order(seeds=3)))
    assert (longer.made, longer.found) == (1, 2)


def test_an_order_finds_what_a_run_has_drawn(shop: Ordered):
    config = shop.members["dog"].config
    weights = shop.plan(shop.order()).mixtures["dog/1"].blend[0].weights
    parallel_sampling.sample(config, shop.store, weights)
    order = shop.order(prompts=config.sample.prompts, seeds=config.sample.seeds, seed=config.seed)
    assert draw(shop.store, shop.plan(order)).made == 0


def test_any_worker_may_take_any_shard_in_any_order(shop: Ordered):
    plan = shop.plan(shop.order(seeds=[1, 2, 3]))
    left = [draw(shop.store, plan, shard).missing for shard in ((3, 3), (1, 3), (2, 3))]
    assert left == [2, 1, 0]
    sharded = finished(shop.store, plan)
    assert draw(shop.store, plan).made == 0
    for key in [*shop.store.keys("orders/"), *shop.store.keys("images/")]:
        shop.store.delete(key)
    assert draw(shop.store, plan).made == 3
    assert finished(shop.store, plan) == sharded


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_shards_are_counted_from_one(text: str):
    assert shard_of("2/8") == (2, 8)
    with pytest.raises(ConfigError, match="--shard takes K/N"):
        shard_of(text)


def test_a_model_is_loaded_once_for_all_its_settings(shop: Ordered, monkeypatch):
    loaded = []

    def counted(*inputs: Any) -> Any:
        loaded.append(inputs)
        return pipelines.load_model(*inputs)

    monkeypatch.setattr(shards, "load_model", counted)
    schedulers = [None, "DDIMScheduler"]
    order = shop.order(
        models=["dog", "dog:0.5"], guidance=[2, 3], noise_schedulers=schedulers, steps=1, seeds=[1]
    )
    plan = shop.plan(order)
    assert draw(shop.store, plan).made == 8
    assert len(loaded) == 2
    assert draw(shop.store, plan).made == 0
    assert len(loaded) == 2
    blobs = [picture.image for picture in finished(shop.store, plan)]
    assert len(set(blobs)) == 8


def test_adapters_mix_in_their_order_and_strengths(shop: Ordered):
    shop.add("hat", "dora")
    mixes = ["dog", "dog:0", "dog + hat", "hat + dog", "dog:0.5 + hat"]
    plan = shop.plan(shop.order(models=mixes, seeds=[1]))
    draw(shop.store, plan)
    pictures = finished(shop.store, plan)
    assert [picture.model for picture in pictures] == [
        "dog/1",
        "dog/1:0",
        "dog/1 + hat/1",
        "hat/1 + dog/1",
        "dog/1:0.5 + hat/1",
    ]
    assert len({picture.image for picture in pictures}) == 5
    base = parallel_sampling.sampling_settings(shop.config, shop.store, None)
    request = (pictures[1].prompt, pictures[1].seed)
    prefix = sampling.images_prefix(shop.config, None)
    ((_, plain, _),) = sampling.each_image(shop.store, prefix, base, [request])
    assert pictures[1].image == plain.blob


def test_what_cannot_mix_is_refused_before_anything_is_drawn(shop: Ordered):
    shop.add("whole", "full")
    shop.plan(shop.order(models="whole"))
    for mix in ("whole:0.5", "dog + whole"):
        with pytest.raises(ConfigError, match=r"whole in .* is a full training"):
            shop.plan(shop.order(models=mix))
    with pytest.raises(ConfigError, match="size 36 x 32 must be multiples of 8"):
        shop.plan(shop.order(size=[36, 32]))
    assert not list(shop.store.keys("images/"))


def test_a_noise_scheduler_that_does_not_fit_is_refused_before_anything_is_drawn(shop: Ordered):
    order = shop.order(noise_schedulers=[None, "FlowMatchEulerDiscreteScheduler"])
    with pytest.raises(ConfigError, match="FlowMatchEulerDiscreteScheduler cannot sample"):
        shop.plan(order)
    assert not list(shop.store.keys("images/"))


def test_kill_nine_loses_nothing_that_was_committed(shop: Ordered):
    plan = shop.plan(shop.order(seeds=10, steps=2))
    worker = multiprocessing.get_context("spawn").Process(target=draw, args=(shop.store, plan))
    worker.start()
    deadline = time.monotonic() + 300
    while len(there := list(shop.store.keys(f"{plan.prefix}/pictures/"))) < 3:
        assert time.monotonic() < deadline
        assert worker.is_alive()
        time.sleep(0.001)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    committed = {key: shop.store.get(key) for key in there}
    after = len(list(shop.store.keys(f"{plan.prefix}/pictures/")))
    assert 3 <= after < 10
    tally = draw(shop.store, plan)
    assert tally.missing == 0
    assert tally.made <= 10 - after
    pictures = finished(shop.store, plan)
    assert len({picture.image for picture in pictures}) == 10
    for key, sidecar in committed.items():
        assert shop.store.get(key) == sidecar
    for picture in pictures:
        assert picture.image is not None
        get_blob(shop.store, picture.image)  # checks its digest


def test_the_pace_is_of_what_is_drawn():
    told: list[tuple[int, int, str]] = []
    now = iter([10.0, 30.0, 50.0])
    pace = ProgressRate(
        total=125, found=1, progress=lambda *said: told.append(said), clock=lambda: next(now)
    )
    for drawn in (False, True, True):
        pace.committed(drawn)
    assert told == [(2, 125, "images"), (3, 125, "images"), (4, 125, "images")]
    # a forward is over, and the next one's images come out at once
    pace.forward(2)
    for _ in range(2):
        pace.committed(True)
    assert told[-1] == (6, 125, "images, 0.10 images/s, 19 min 50 s left")
    # others have drawn what is not committed here yet
    pace.forward(6)
    assert told[-1] == (10, 125, "images, 0.20 images/s, 9 min 35 s left")
