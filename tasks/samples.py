"""Orders of images: their models, their shards, and what people see of them."""

from pathlib import Path

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from dreambooth_core.config import Config
from dreambooth_core.drawing import darkroom, fulfilling, palettes
from dreambooth_core.drawing.darkroom import Tally
from dreambooth_core.drawing.fulfilling import Published
from dreambooth_core.drawing.orders import Order
from dreambooth_core.drawing.palettes import Member
from dreambooth_core.storage import Store, open_store
from tasks.stages import progress_shown, stage


@stage("find models")
def find_models(order: Order, place: Config | None, work: Path) -> dict[str, Member]:
    """The models that the order names, as they stand now; raises `ConfigError`."""
    return palettes.find_members(order, place, work)


@stage("draw", gpu=True)
def draw_shard(order: Order, members: dict[str, Member], shard: str) -> Tally:
    """Draw what is missing of one shard of the order."""
    store = store_of(members)
    plan = fulfilling.planned(order, members, store)
    part = darkroom.shard_of(shard)
    get_run_logger().info(fulfilling.announced(plan, part))
    with progress_shown("sample") as progress:
        return darkroom.draw(store, plan, part, progress)


@stage("publish")
def publish_order(order: Order, members: dict[str, Member]) -> Published | None:
    """Gallery, contact sheet and manifest in the store; None while images are missing."""
    store = store_of(members)
    return fulfilling.publish(order, fulfilling.planned(order, members, store), members, store)


def show_order(tally: Tally, published: Published | None) -> None:
    """Tell among Prefect's artifacts how the order went, and where its files are."""
    create_markdown_artifact(as_markdown(tally, published), key="order")


def as_markdown(tally: Tally, published: Published | None) -> str:
    """What a worker did and, when the order is done, a list of its files."""
    speed = f", {tally.images_per_second:.2f} images/s" if tally.made else ""
    done = f"{tally.made} images drawn, {tally.found} found in {tally.seconds:.1f} s{speed}."
    if published is None:
        return f"{done}\n\n{tally.missing} images are left to other shards."
    files = [f"- {name}: `{uri}`" for name, uri in published.files.items()]
    flags = f"{published.near_duplicates} near-duplicates, {published.unsafe} flagged as unsafe."
    title = f"# {published.order}: {published.count} images"
    return "\n".join([title, "", done, "", flags, "", *files])


def store_of(members: dict[str, Member]) -> Store:
    """Where the models lie, and the order's images are to lie."""
    return open_store(next(iter(members.values())).config.storage)
