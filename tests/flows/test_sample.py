"""The flow `sample`: shards are drawn once, and the last one publishes the job."""

import pytest

from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.config import Config
from tests.orders_for_real import SampledModels
from tests.prefect_for_real import artifacts


@pytest.mark.servers
def test_shards_of_a_job_are_drawn_and_published(server: str, tracked_config: Config) -> None:
    from flows.sample import sample_flow

    SampledModels(tracked_config).register("dog")
    job = SamplingJob.model_validate(
        {"name": "cards", "models": "dog", "prompts": ["a photo of {subject}"], "seeds": 4}
    )
    work = tracked_config.paths.work
    first = sample_flow(job, work=work, shard="1/2")
    assert (first.made, first.found, first.missing) == (2, 0, 2)
    assert "2 images are left to other shards" in artifacts()["job"]["data"]
    second = sample_flow(job, work=work, config=tracked_config, shard="2/2")
    assert (second.made, second.missing) == (2, 0)
    text = artifacts()["job"]["data"]
    assert "# cards: 4 images" in text
    assert "- gallery.html: `" in text
    again = sample_flow(job, work=work)
    assert (again.made, again.found) == (0, 4)
