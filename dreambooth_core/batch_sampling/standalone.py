"""A sampling job from its file to its published images, in this process."""

from pathlib import Path

from dreambooth_core import console
from dreambooth_core.batch_sampling import shards
from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.batch_sampling.models import find_members
from dreambooth_core.batch_sampling.publish import PublishedJob, announced, plan_job, publish
from dreambooth_core.batch_sampling.shards import ShardResult
from dreambooth_core.config import Config
from dreambooth_core.servers.local import local_services
from dreambooth_core.storage.records import Record
from dreambooth_core.storage.stores import open_store


class JobResult(Record):
    """How an order, or a worker's shard of it, went."""

    tally: ShardResult
    published: PublishedJob | None
    """None while images of other shards are missing."""


def run_job(
    config: Config | None, work: Path, order: SamplingJob, shard: tuple[int, int], out: Path
) -> JobResult:
    """Draw what is missing of a shard of the order; publish the order once nothing is missing.

    `config` says where MLflow is, as in `find_version`. Raises `ConfigError` before anything is
    drawn for models or settings that do not go together.
    """
    members = find_members(order, config, work)
    home = next(iter(members.values())).config
    with local_services(home), console.progress_bar("sample") as progress:
        store = open_store(home.storage)
        plan = plan_job(order, members, store)
        console.say(announced(plan, shard))
        tally = shards.draw(store, plan, shard, progress)
        return JobResult(tally=tally, published=publish(order, plan, members, store, out))
