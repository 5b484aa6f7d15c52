"""Images drawn by several processes: the same bytes, each made once, whoever dies."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dreambooth_core.batch_sampling.shards import PlannedImage, draw, finished
from dreambooth_core.config import Compute, Config
from dreambooth_core.data.ingest import ingest
from dreambooth_core.diffusion import parallel_sampling, sampling
from dreambooth_core.diffusion.parallel_sampling import ImageRange, draw_range, image_pool, ranges
from dreambooth_core.errors import ModelError
from dreambooth_core.evaluation.evaluate import evaluate
from dreambooth_core.storage.blobs import get_blob, image_set
from dreambooth_core.storage.records import Blob, Image, ImageSet
from dreambooth_core.storage.stores import Store, open_store
from dreambooth_core.training.class_images import ensure_class_images
from tests.moved_weights import weights_of
from tests.orders_for_real import Ordered
from tests.pieces_of_work import hands
from tests.ray_for_real import cluster, own_network


def _config(config: Config, place: Path, workers: int, **prior: object) -> Config:
    """The same run with a store of its own."""
    asked = {
        **config.model_dump(),
        "prior": {"target": "images", "num_class_images": 7, **prior},
        "compute": {"workers": workers},
        "storage": {"uri": f"file://{place / 'store'}", "endpoint": None},
        "paths": {"work": place / "work"},
    }
    return Config.model_validate(asked)


def _photos(store: Store) -> ImageSet:
    """A photo whose content nobody looks at."""
    photo = Image(name="0.png", blob=Blob(sha256="0" * 64, size=1), size=(64, 64))
    return image_set(store, "datasets/test", [photo])


def _class_images(config: Config) -> ImageSet:
    store = open_store(config.storage)
    made, reused = ensure_class_images(config, store, _photos(store))
    assert made is not None
    assert not reused
    return made


def _kept(config: Config) -> dict[str, bytes]:
    """All of a store but its sets of images, whose URIs name the store, and its leases."""
    store = open_store(config.storage)
    keys = [*_written(store), *store.keys("blobs/")]
    return {key: store.get(key) for key in keys if "/sets/" not in key}


def _written(store: Store) -> dict[str, float]:
    """Key of what belongs to images -> when it was written."""
    return {
        found.key: found.written
        for found in store.listed("images/")
        if not found.key.endswith("/lease.json")
    }


def _killing(store: Store, kill: Callable[[], None]) -> tuple[threading.Thread, dict[str, float]]:
    """Once three things are written, `kill`; with what was there by then."""
    seen = dict[str, float]()

    def wait() -> None:
        while len(seen) < 3:
            time.sleep(0.005)
            seen.update(_written(store))
        kill()

    return threading.Thread(target=wait, daemon=True), seen


def test_ranges_fill_their_forwards() -> None:
    requests = [("a", seed) for seed in range(21)]
    cut = ranges(requests, workers=2, batch=2)
    assert [request for piece in cut for request in piece] == requests
    assert [len(piece) for piece in cut] == [4, 4, 4, 4, 4, 1]
    assert [len(piece) for piece in ranges(requests[:3], workers=8, batch=4)] == [3]


def test_a_range_that_another_has_begun_is_only_completed(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw_all = sampling.generate

    def counted(painter: Any, drawing: Any, requests: Any, progress: Any) -> Any:
        drawn.append(len(requests))
        return draw_all(painter, drawing, requests, progress)

    monkeypatch.setattr(sampling, "generate", counted)
    store, by = open_store(tiny_config.storage), sampling.sample_origin(tiny_config, None)
    whole = ImageRange(
        config=tiny_config,
        blend=(),
        size=by.size,
        prefix=by.prefix,
        requests=tuple(("a robot", seed) for seed in range(5)),
        shares_work_folder=True,
        threads=torch.get_num_threads(),
    )
    draw_range(whole.model_copy(update={"requests": whole.requests[:3]}).model_dump_json())
    draw_range(whole.model_dump_json())
    draw_range(whole.model_dump_json())
    assert drawn == [3, 2]
    assert all(store.exists(sampling.image_key(by.prefix, one)) for one in whole.requests)


@pytest.mark.slow
def test_two_workers_leave_the_bytes_that_one_process_leaves(
    tiny_config: Config, tmp_path: Path
) -> None:
    alone = _config(tiny_config, tmp_path / "alone", 1)
    shared = _config(tiny_config, tmp_path / "shared", 2)
    assert _class_images(shared).digest == _class_images(alone).digest
    assert _kept(shared) == _kept(alone)
    store = open_store(shared.storage)
    assert ensure_class_images(shared, store, _photos(store))[1]
    assert not hands()


@pytest.mark.slow
def test_three_workers_of_which_one_is_killed_lose_nothing_that_was_stored(
    tiny_config: Config, tmp_path: Path
) -> None:
    alone = _config(tiny_config, tmp_path / "alone", 1, images=12)
    shared = _config(tiny_config, tmp_path / "shared", 3, images=12)
    store = open_store(shared.storage)
    killer, seen = _killing(store, lambda: hands()[0].kill())
    killer.start()
    made = _class_images(shared)
    killer.join()
    assert made.digest == _class_images(alone).digest
    assert seen.items() <= _written(store).items()
    assert not hands()


def _digest_of_class_images(config: Config) -> str:
    return _class_images(config).digest


def _order(config: Config) -> tuple[PlannedImage, ...]:
    """Two prompts with twelve seeds, by an adapter whose weights are in the store alone."""
    shop = Ordered(config)
    shop.add("dog")
    asked = {"prompts": ["a {subject}", "a {class}"], "seeds": 12}
    planned = shop.plan(shop.order(**asked, compute=config.compute.model_dump()))
    assert draw(shop.store, planned).made == 24
    return finished(shop.store, planned)


def _scores(config: Config) -> str:
    """Of 24 images by trained weights, and of those that they are compared with."""
    measured = config.evaluation.model_copy(update={"seeds": 12, "accessories": ()})
    config = config.model_copy(update={"evaluation": measured})
    store = open_store(config.storage)
    photos = ingest(config, store)[0].images
    weights = weights_of(Path(config.model.base), store, 0.05)
    return evaluate(config, store, photos, weights)[0].digest


@pytest.mark.servers
@pytest.mark.parametrize("make", [_digest_of_class_images, _order, _scores])
def test_a_ray_cluster_loses_a_machine_and_nothing_that_was_stored(
    make: Callable[[Config], object], tiny_config: Config, tmp_path: Path
) -> None:
    alone = _config(tiny_config, tmp_path / "alone", 1, images=24)
    shared = _config(tiny_config, tmp_path / "shared", 2, images=24)
    ray = Compute(engine="ray", workers=2, gpu=False)
    shared = shared.model_copy(update={"compute": ray})
    store = open_store(shared.storage)
    with own_network(), cluster(tmp_path / "cluster", machines=2) as machines:
        killer, seen = _killing(store, machines.machines[0].kill)
        killer.start()
        made = make(shared)
        killer.join()
    assert len(seen) < 24, "it was killed too late"
    assert made == make(alone)
    assert seen.items() <= _written(store).items()
    assert _kept(shared) == _kept(alone)


@pytest.mark.slow
def test_an_order_is_drawn_by_its_own_workers(tiny_config: Config) -> None:
    shop = Ordered(tiny_config)
    shop.add("dog")
    asked = {"prompts": ["a {subject}", "a {class}"], "seeds": 3, "guidance": [2, 4]}
    alone = shop.plan(shop.order(**asked))
    assert draw(shop.store, alone).made == 12
    expected = finished(shop.store, alone)
    for key in [*shop.store.keys("orders/"), *shop.store.keys("images/")]:
        shop.store.delete(key)
    shared = shop.plan(shop.order(**asked, compute={"workers": 2}))
    assert shared.prefix == alone.prefix
    assert draw(shop.store, shared).made == 12
    assert finished(shop.store, shared) == expected
    for picture in expected:
        assert picture.image is not None
        get_blob(shop.store, picture.image)  # checks its digest


@pytest.mark.slow
def test_another_base_is_noticed_where_it_lies(tiny_config: Config) -> None:
    config = tiny_config.model_copy(update={"compute": Compute(workers=2)})
    store = open_store(config.storage)
    drawing = parallel_sampling.sampling_settings(config, store, None)
    assert drawing.origin is not None
    other = image_pool(config, (), (16, 16), drawing.origin.prefix)
    assert other is not None
    with pytest.raises(ModelError, match="bring the same base to all machines"):
        other([("a", 1)], None)
    assert not list(store.keys("images/"))
