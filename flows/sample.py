"""An order of images in; images, a gallery and a manifest out."""

from pathlib import Path

from prefect import flow

from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.batch_sampling.shards import ShardResult
from dreambooth_core.config import Config
from dreambooth_core.servers.local import local_services
from tasks.batch import draw_shard, find_models, publish_order, show_order


@flow(name="sample", persist_result=False)
def sample_flow(
    order: SamplingJob,
    work: Path = Path(".dreambooth"),
    place: Config | None = None,
    shard: str = "1/1",
) -> ShardResult:
    """Draw what is missing of a shard of the order; the last shard publishes it.

    `place` is a config that says where MLflow is; without one it is in the folder `work`.
    """
    members = find_models(order, place, work)
    with local_services(next(iter(members.values())).config):
        tally = draw_shard(order, members, shard)
        show_order(tally, publish_order(order, members))
        return tally
