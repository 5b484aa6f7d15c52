"""Orders of images: their models, their shards, and what people see of them."""

from pathlib import Path

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from dreambooth_core.batch_sampling import models, publish, shards
from dreambooth_core.batch_sampling.job import SamplingJob
from dreambooth_core.batch_sampling.models import ModelReference
from dreambooth_core.batch_sampling.publish import PublishedJob
from dreambooth_core.batch_sampling.shards import ShardResult
from dreambooth_core.config import Config
from dreambooth_core.storage.stores import Store, open_store
from tasks.stage import progress_shown, stage


@stage("find models")
def find_models(order: SamplingJob, place: Config | None, work: Path) -> dict[str, ModelReference]:
    """The models that the order names, as they stand now; raises `ConfigError`."""
    return models.find_members(order, place, work)


@stage("draw", gpu=True)
def draw_shard(order: SamplingJob, members: dict[str, ModelReference], shard: str) -> ShardResult:
    """Draw what is missing of one shard of the order."""
    store = store_of(members)
    plan = publish.plan_job(order, members, store)
    part = shards.shard_of(shard)
    get_run_logger().info(publish.announced(plan, part))
    with progress_shown("sample") as progress:
        return shards.draw(store, plan, part, progress)


@stage("publish")
def publish_order(order: SamplingJob, members: dict[str, ModelReference]) -> PublishedJob | None:
    """Gallery, contact sheet and manifest in the store; None while images are missing."""
    store = store_of(members)
    return publish.publish(order, publish.plan_job(order, members, store), members, store)


def show_order(tally: ShardResult, published: PublishedJob | None) -> None:
    """Tell among Prefect's artifacts how the order went, and where its files are."""
    create_markdown_artifact(as_markdown(tally, published), key="order")


def as_markdown(tally: ShardResult, published: PublishedJob | None) -> str:
    """What a worker did and, when the order is done, a list of its files."""
    speed = f", {tally.images_per_second:.2f} images/s" if tally.made else ""
    done = f"{tally.made} images drawn, {tally.found} found in {tally.seconds:.1f} s{speed}."
    if published is None:
        return f"{done}\n\n{tally.missing} images are left to other shards."
    files = [f"- {name}: `{uri}`" for name, uri in published.files.items()]
    flags = f"{published.near_duplicates} near-duplicates, {published.unsafe} flagged as unsafe."
    title = f"# {published.order}: {published.count} images"
    return "\n".join([title, "", done, "", flags, "", *files])


def store_of(members: dict[str, ModelReference]) -> Store:
    """Where the models lie, and the order's images are to lie."""
    return open_store(next(iter(members.values())).config.storage)
