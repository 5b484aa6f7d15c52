"""The flow that draws an order: in shards, published by the last one, and never twice."""

import pytest

from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.config import Config
from tests.orders_for_real import Ordered
from tests.prefect_for_real import artifacts


@pytest.mark.servers
def test_shards_of_an_order_are_drawn_and_published(server: str, tracked_config: Config) -> None:
    from flows.sample import sample_flow

    shop = Ordered(tracked_config)
    shop.register("dog")
    order = SamplingJob.model_validate(
        {"name": "cards", "models": "dog", "prompts": ["a photo of {subject}"], "seeds": 4}
    )
    work = tracked_config.paths.work
    first = sample_flow(order, work=work, shard="1/2")
    assert (first.made, first.found, first.missing) == (2, 0, 2)
    assert "2 images are left to other shards" in artifacts()["order"]["data"]
    second = sample_flow(order, work=work, place=tracked_config, shard="2/2")
    assert (second.made, second.missing) == (2, 0)
    said = artifacts()["order"]["data"]
    assert "# cards: 4 images" in said
    assert "- gallery.html: `" in said
    again = sample_flow(order, work=work)
    assert (again.made, again.found) == (0, 4)
