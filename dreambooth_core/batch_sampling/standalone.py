"""A sampling job without Prefect: planned, drawn and published in this process."""

from collections.abc import Mapping
from pathlib import Path

from dreambooth_core import console
from dreambooth_core.batch_sampling import shards
from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.batch_sampling.publish import announcement, publish
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.records import ModelReference, PublishedJob, Record, ShardResult
from dreambooth_core.storage.stores import open_store


class JobResult(Record):
    """Outcome of a sampling job, or of one shard of it."""

    shard: ShardResult
    published: PublishedJob | None
    """None while images of other shards are missing."""


def run_job(
    job: SamplingJob, models: Mapping[str, ModelReference], shard: tuple[int, int], out: Path
) -> JobResult:
    """Draw the missing images of a shard; publish the job into `out` once none is missing.

    `models` resolves the names in the job. Raises `ConfigError`, before anything is drawn, for
    models or settings that do not go together.
    """
    config = next(iter(models.values())).config
    with local_services(config), console.progress_bar("sample") as progress:
        store = open_store(config.storage)
        plan = shards.plan_job(job, models, store)
        console.say(announcement(plan, shard))
        result = shards.draw(store, plan, shard, progress)
        return JobResult(shard=result, published=publish(plan, store, out))
